"""Block-causal attention on a GPU that skips what the mask hides: flex attention, compiled.

The dense mask of 1024 px has 9,451 x 9,451 entries, two fifths of them False; flex attention leaves out whole tiles of
such and reads no mask at all where a tile is all True.

Letters: B rows, N heads, L tokens, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

SMALLEST_HEAD = 16  # flex attention's kernels take no narrower heads


def looks_back(levels: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """May a query look at a key: when its level is the same or later. `levels` are those of each token, (L,)."""

    def may_look(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return levels[query] >= levels[key]

    return may_look


@dataclass(frozen=True)
class FlexMask:
    """A block-causal mask in the form by which flex attention skips tiles."""

    tiles: BlockMask

    @classmethod
    def of_levels(cls, levels: Tensor) -> FlexMask:
        """The mask among tokens of these levels, (L,), on their device."""
        from torch.nn.attention.flex_attention import create_block_mask

        count = len(levels)
        return cls(create_block_mask(looks_back(levels), None, None, count, count, device=str(levels.device)))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """Softmax attention, (B, N, L, K) all of them and the result."""
        from torch.nn.attention.flex_attention import flex_attention

        kernel: Any = _compiled()
        if torch.compiler.is_compiling():
            kernel = flex_attention
        return kernel(queries, keys, values, block_mask=self.tiles, scale=scale)


@cache
def _compiled() -> Callable[..., Any]:
    """Flex attention alone, where the whole block is not compiled with it."""
    from torch.nn.attention.flex_attention import flex_attention

    # the shapes of a run are few and come again and again: one kernel for each
    return torch.compile(flex_attention, dynamic=False)
