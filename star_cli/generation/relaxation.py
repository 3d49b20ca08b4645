"""Drawing without choosing: a mixture of codes in place of one (Gumbel relaxation, published as "more smooth").

Pictures come out smoother, and have no tokens. The commands do not offer it; whoever writes a scale loop of their own
can.

Letters: B images, l tokens of a scale, V codes, Z code width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star_cli.models.schedule import ScaleSchedule


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise: -log of exponential noise."""
    return -torch.empty(shape, device=generator.device).exponential_(generator=generator).log()


def relax(logits: Tensor, noise: Tensor, progress: float) -> Tensor:
    """Weights of the codes, nearly one-hot towards the last scale.

    Args:
        logits: guided; unfiltered as in STAR, or filtered as in VAR, (B, l, V), float32.
        noise: from `gumbel_noise`, same shape.
        progress: 0 at the first scale, 1 at the last, see `ScaleSchedule.progress`.
    Returns:
        (B, l, V), each row adding up to 1; times the codebook (V, Z) they give code vectors.
    """
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    return ((logits * (1 + progress) + noise) / temperature).softmax(-1)


def relaxed_codes(
    logits: Tensor, codebook: Tensor, scale: int, schedule: ScaleSchedule, generator: torch.Generator
) -> Tensor:
    """Code vectors of one scale: (B, l, V) logits and (V, Z) codes to (B, Z, side, side)."""
    noise = gumbel_noise(tuple(logits.shape), generator).to(logits.device)
    codes = relax(logits, noise, schedule.progress(scale)) @ codebook  # (B, l, Z)
    return codes.transpose(1, 2).unflatten(2, (schedule.sides[scale],) * 2)
