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


def progress_of_pass(on_scale: OnScale | None, start: int, images: int, max_batch: int) -> OnScale | None:
    """Progress of one pass as progress of all."""
    if on_scale is None:
        return None
    passes, done_passes = -(-images // max_batch), start // max_batch

    def report(done: int, total: int) -> None:
        on_scale(done_passes * total + done, passes * total)

    return report
