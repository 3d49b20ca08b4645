"""Networks without memory, to be handed the tensors of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_FILLS = (nn.init.normal_, nn.init.trunc_normal_, Tensor.normal_, Tensor.triu_)
"""What torch has no kernel for on the meta device: it imports its compiler, which takes seconds, to do nothing."""


@contextmanager
def blank() -> Iterator[None]:
    """Where new tensors are on the meta device, and what would fill them is left out."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func in _FILLS:
            return args[0] if args else named["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **named)
