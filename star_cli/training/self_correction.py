"""Teacher forcing with the model's own mistakes: the true tokens of later scales put them right.

In drawing, a model sees scales that it drew; in plain teacher forcing, scales without a mistake. Here it draws some of
what it sees itself, and the rest of the latent is quantised again after each such scale, so that what it is asked for
makes up for the mistakes so far. Infinity does so with bits flipped at random (arXiv 2412.04431, bitwise
self-correction).

Letters: B images, C code width, V codes, h w latent, L tokens of the schedule, l tokens of its scales but the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.noise import Chance


def own_draws(logits: Tensor, chance: Chance, rows: Sequence[int]) -> Tensor:
    """A draw of each token from what the model thinks of it, true scales before it.

    Args:
        logits: (B, l, V).
        chance: of the step.
        rows: place of each row in the whole batch, B of them.
    Returns:
        (B, l), int64.
    """
    clocks = [torch.empty(logits.shape[1:]).exponential_(generator=chance.generator("own draws", row)) for row in rows]
    return (logits.float().softmax(-1) / torch.stack(clocks).to(logits.device)).argmax(-1)


def surrounding_autocast(device: torch.device) -> torch.autocast:
    """The precision set now, to go back to inside a stretch of float32."""
    kind = device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))


def replaced_tokens(count: int, most: float, chance: Chance, rows: Sequence[int]) -> Tensor:
    """Which tokens are replaced, (B, count) bool: in each row another share, even between none and `most`."""
    replaced = []
    for row in rows:
        generator = chance.generator("own places", row)
        share = most * torch.rand((), generator=generator)
        replaced.append(torch.rand(count, generator=generator) < share)
    return torch.stack(replaced)


def quantize_again(
    quantizer: MultiScaleQuantizer,
    latent: Tensor,
    drawn: Tensor,
    replaced: Tensor,
    schedule: ScaleSchedule,
    scales: int,
) -> tuple[Tensor, Tensor]:
    """Tokens of a latent in which some are not the nearest codes; those of later scales make up for it.

    Args:
        quantizer: has the codes.
        latent: (B, C, h, w), float32.
        drawn: what comes in place of the nearest code, (B, l), int64.
        replaced: where it does, (B, l), bool.
        schedule: all scales of the resolution.
        scales: how many are trained; the last of them has no tokens replaced, for nothing looks at it.
    Returns:
        The nearest codes, which the model is asked for, (B, L), and what it sees, (B, L).
    """
    seen: list[Tensor] = []

    def show(scale: int, nearest: Tensor) -> Tensor:
        here = schedule.slice(scale)
        is_last = scale == scales - 1
        seen.append(nearest if is_last else torch.where(replaced[:, here], drawn[:, here], nearest))
        return seen[-1]

    asked = [tokens for tokens, _ in islice(quantizer.encode_scales(latent, schedule, show), scales)]
    return torch.cat(asked, dim=1), torch.cat(seen, dim=1)
