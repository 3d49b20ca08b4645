"""One block of the scale-wise transformer, and what it is told about the prompt (STAR, figure of the block; VAR, 3.1).

Letters: B rows (images, doubled under guidance), l tokens handed in, C width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.models.attention import AttentionMask, CrossAttention, KeysValues, KeyValueStore, SelfAttention
from star_cli.models.config import TransformerConfig
from star_cli.models.linear import linear

Modulation = Sequence[Tensor]
"""Two gains, two scales, two shifts, in this order: of self-attention and of the feed-forward network."""


@dataclass(frozen=True)
class Prompted:
    """All that the transformer derives from the prompts (or classes) alone, computed once per picture."""

    start: Tensor
    """The 1x1 start map before position and level are added, (B, 1, C)."""
    text: tuple[KeysValues, ...] = ()
    """Text keys and values of each block; empty without cross-attention."""
    text_mask: Tensor | None = None
    """(B, 1, 1, T), True for tokens of the prompt."""
    heard: int = 0
    """Rows whose own text is looked at; the other rows repeat what these got."""
    modulation_vector: Tensor | None = None
    """What class or pooled text says to the modulation of blocks and head, (B, C); None where neither modulates."""
    stable_start: Tensor | None = None
    """The stable head's own text token, (B, 1, C); None for a model without that head."""

    def first(self, rows: int) -> Prompted:
        """The first rows alone."""
        text = tuple(KeysValues(held.keys[:rows], held.values[:rows]) for held in self.text)
        return Prompted(
            self.start[:rows],
            text,
            None if self.text_mask is None else self.text_mask[:rows],
            min(self.heard, rows),
            None if self.modulation_vector is None else self.modulation_vector[:rows],
            None if self.stable_start is None else self.stable_start[:rows],
        )


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.enter = nn.Linear(config.width, hidden)
        self.leave = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, l, C) -> (B, l, C)."""
        hidden = linear(x.to(self.enter.weight.dtype), self.enter.weight, self.enter.bias, gelu=True)
        return linear(hidden, self.leave.weight, self.leave.bias)


class Block(nn.Module):
    """x += self-attention; x += cross-attention; x += feed-forward; each behind a LayerNorm without gain and bias."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config) if config.cross_attention else None
        self.feed_forward = FeedForward(config)
        if config.has_own_modulation:
            self.modulation = nn.Linear(config.width, 6 * config.width)
        elif config.modulation != "none":
            self.modulation_offset = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)

    def _modulation(self, vector: Tensor) -> Modulation:
        """The six modulations, each broadcastable to (B, l, C), from what `StarTransformer._modulation_input` made."""
        if self.config.has_own_modulation:
            six = self.modulation(F.silu(vector)).unflatten(-1, (6, -1))
        else:  # the projection was shared by all blocks; each adds its own offset
            six = vector + self.modulation_offset
        return six.unbind(-2)

    def forward(
        self,
        x: Tensor,
        prompted: Prompted | None,
        text: KeysValues | None,
        modulation_input: Tensor | None,
        rotation: Tensor | None,
        mask: AttentionMask,
        store: KeyValueStore | None,
        branches: Tensor | None = None,
    ) -> Tensor:
        """Residual stream in and out, (B, l, C) float32; arguments as in `SelfAttention` and `Prompted`.

        Without cross-attention `prompted` may be None. `branches` says how much self-attention and feed-forward network
        count for each row, (2, B): see `StarTransformer.hidden_states`.
        """
        six = None if modulation_input is None else self._modulation(modulation_input)
        weights = None if branches is None else branches[..., None, None]  # (2, B, 1, 1)
        x = x + self._gained(self.self_attention(self._modulated(x, six, 0), rotation, mask, store), six, weights, 0)
        if self.cross_attention is not None and text is not None and prompted and prompted.text_mask is not None:
            heard = prompted.heard
            looked = self.cross_attention(self._norm(x[:heard]), text, prompted.text_mask[:heard])
            x = (x.unflatten(0, (-1, heard)) + looked).flatten(0, 1)  # rows that repeat it share it
        return x + self._gained(self.feed_forward(self._modulated(x, six, 1)), six, weights, 1)

    def _modulated(self, x: Tensor, six: Modulation | None, part: int) -> Tensor:
        """What one part of the block reads: self-attention (0) or the feed-forward network (1)."""
        normed = self._norm(x)
        # without modulation two passes over all tokens that would change nothing
        return normed if six is None else normed * (1 + six[2 + part]) + six[4 + part]

    def _gained(self, change: Tensor, six: Modulation | None, weights: Tensor | None, part: int) -> Tensor:
        """How much of what it gives counts."""
        gain = None if six is None else six[part]
        if weights is not None:
            gain = weights[part] if gain is None else weights[part] * gain
        return change if gain is None else gain * change

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.config.width,), eps=self.config.norm_eps)
