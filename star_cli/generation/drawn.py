"""What a scale loop gives back, and how it tells how far it is.

Letters: B images, C code width, h w latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

OnScale = Callable[[int, int], None]
"""Called after each scale with the number of scales done and their total."""


@dataclass(frozen=True)
class Drawn:
    """What the scale loop leaves behind."""

    f_hat: Tensor
    """Sum of all scales, (B, C, h, w), float32; the decoder makes the picture of it."""
    token_maps: list[Tensor]
    """Tokens of each scale, (B, side, side), int64."""
