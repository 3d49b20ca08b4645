"""The late scales, which hold most tokens and change the picture least: what may be left out of them.

They settle detail where the picture is settled already. "fast" leaves out their unconditional rows (Switti, arXiv
2412.01819, found guidance of the last scales needless); "turbo", besides, most of their tokens (FastVAR, arXiv
2503.23367): the plainest skip the blocks and take over what the blocks changed there one scale before.

Letters: B images, l tokens of a scale, k of them kept, C width, Z code width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.generation.cache import KVCache
from star_cli.generation.options import SamplingOptions
from star_cli.models.block import Prompted
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer

LATE_FROM = 0.8
"""Progress of the first late scale: the last two of ten (256 and 512 px; 62 % and 71 % of all tokens), the last three
of fourteen (1024 px), as many as Switti leaves unguided."""
KEPT_SHARE = 0.5
"""Share of a late scale's tokens that run through the blocks (FastVAR keeps 40 % to 60 % of all but the very last)."""
_GRID = 255
"""Steps between a place that equals the mean and the one furthest from it. Float rounding, which differs with the size
of a batch, must not decide which of two equal places is kept; their order does."""


def first_late_scale(options: SamplingOptions, schedule: ScaleSchedule) -> int:
    """Index of the first scale of which something is left out; the number of scales when nothing is."""
    if options.speed not in ("fast", "turbo"):
        return len(schedule)
    return next((scale for scale in range(len(schedule)) if schedule.progress(scale) >= LATE_FROM), len(schedule))


def pivotal_tokens(codes: Tensor) -> Tensor:
    """The places of each image that are furthest from its mean, FastVAR's measure of detail.

    Distance from the surroundings, which finds edges alone, was worse: of 20 pictures of star-shapes (256 px)
    14 were right and not 17, PSNR to the exact ones 35 and not 39 dB.

    Args:
        codes: f_hat at the side of a scale, (B, l, Z).
    Returns:
        Their indices in rising order, (B, k), k the same for every image.
    """
    distance = (codes - codes.mean(1, keepdim=True)).square().sum(2)  # (B, l)
    most = distance.amax(1, keepdim=True).clamp_min(torch.finfo(distance.dtype).tiny)
    order = (distance / most * _GRID).round().argsort(dim=1, descending=True, stable=True)
    return order[:, : math.ceil(KEPT_SHARE * codes.shape[1])].sort(dim=1).values


def run_pivotal(
    transformer: StarTransformer,
    x: Tensor,
    codes: Tensor,
    change_before: Tensor,
    prompted: Prompted,
    schedule: ScaleSchedule,
    scale: int,
    caches: Sequence[KVCache],
) -> Tensor:
    """All blocks, for the pivotal tokens of one scale alone.

    Args:
        transformer: whose blocks run.
        x: embedded tokens, (B, l, C).
        codes: f_hat at the side of this scale, (B, l, Z).
        change_before: what the blocks added to each token of the scale before, (B, its l, C).
        prompted: from `prompt`, B rows.
        schedule: all scales of the picture.
        scale: index of this one.
        caches: one per block; they get the pivotal tokens alone.
    Returns:
        Hidden states of all tokens, (B, l, C).
    """
    sides = schedule.sides[scale - 1], schedule.sides[scale]
    change = change_before.transpose(1, 2).unflatten(2, (sides[0], sides[0]))
    change = F.interpolate(change, size=(sides[1], sides[1]), mode="bilinear")
    kept = pivotal_tokens(codes)
    index = kept[..., None].expand(-1, -1, x.shape[-1])
    places = schedule.offsets[scale] + kept
    run = transformer.run_blocks(x.gather(1, index), prompted, schedule, places, stores=caches)
    return (x + change.flatten(2).transpose(1, 2)).scatter(1, index, run)
