"""The head that draws the last scales once more, from what the blocks left and from the codes already fixed (STAR,
causal-driven stable sampling).

Letters: B rows (images, doubled under guidance), l tokens of the scales in question, C width, V codes, Z code width,
D text width, P rotated pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.models.block import Block
from star_cli.models.config import TransformerConfig


class StableHead(nn.Module):
    """A few plain blocks over text token, known codes and hidden states: no cross-attention, modulation or cache."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.start_position = nn.Parameter(torch.zeros(1, 1, width))
        self.text_to_start = nn.Linear(config.text_width, width)
        self.code_to_width = nn.Linear(config.code_dim, width)
        self.level_embedding = nn.Embedding(config.levels, width)
        self.join = nn.Linear(2 * width, width)
        plain = replace(config, text_start=True, cross_attention=False, modulation="none")
        self.blocks = nn.ModuleList(Block(plain) for _ in range(config.stable_blocks))
        self.head = nn.Linear(width, config.codebook_size)

    def start(self, pooled: Tensor) -> Tensor:
        """The text token that stands first: pooled text (B, D) -> (B, 1, C)."""
        return self.text_to_start(pooled.to(self.text_to_start.weight.dtype))[:, None] + self.start_position

    def embed(self, codes: Tensor, levels: Tensor) -> Tensor:
        """Known codes at their place.

        Args:
            codes: code vectors, 0 where a code is not known, (B, l, Z).
            levels: row of the level embedding of each token, (l,), int64.
        Returns:
            (B, l, C).
        """
        return self.code_to_width(codes.to(self.code_to_width.weight.dtype)) + self.level_embedding(levels)

    def forward(
        self, features: Tensor, previous: Tensor, rotation: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Scores of the codes, the text token's included.

        Args:
            features: text token and known codes, (B, 1 + l, C).
            previous: text token and hidden states, (B, 1 + l, C).
            rotation: rotary table, (1 + l, P); None with learned positions.
            mask: True where a token may look, (1 + l, 1 + l); None: everywhere.
        Returns:
            (B, 1 + l, V), float32.
        """
        weight = self.join.weight
        x = self.join(torch.cat([features.to(weight.dtype), previous.to(weight.dtype)], dim=-1))
        if weight.dtype != torch.float32:
            x = x.float()  # half-precision weights: the residual stream is float32; under autocast it is what join gave
        for block in self.blocks:
            x = block(x, None, None, None, rotation, mask, None)
        normed = F.layer_norm(x.float(), (self.config.width,), eps=self.config.norm_eps)
        return self.head(normed).float()

    def training_mask(self, levels: Tensor) -> Tensor:
        """True where a token may look when several scales are refined at once, (1 + l, 1 + l).

        The text token looks at all and is seen by all; another token sees its own scale besides.
        """
        return F.pad(levels[:, None] == levels[None, :], (1, 0, 1, 0), value=True)
