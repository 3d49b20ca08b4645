"""Fixed 2-D sines and cosines of a token's place, added to its input (the convention of MAE and DiT).

Letters: L tokens of the schedule, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star_cli.models.rope import scale_coordinates
from star_cli.models.schedule import ScaleSchedule


def sincos_table(schedule: ScaleSchedule, width: int, theta: float, norm: float) -> Tensor:
    """What is added to each token, (L, C), float32.

    The first half of the channels tells the column, the second the row; in each half the sines come first, then the
    cosines, of the coordinate times theta^(-4i / C), i = 0 .. C / 4 - 1. Coordinates of each scale run from 0 to
    `norm`, as in `rotation_table`; a negative `norm` keeps raw token coordinates, as MAE and DiT have them.
    """
    frequencies = theta ** (-torch.arange(0, width, 4, dtype=torch.float32) / width)  # (C / 4,)
    return torch.cat([_scale_table(side, frequencies, norm) for side in schedule.sides])


def _scale_table(side: int, frequencies: Tensor, norm: float) -> Tensor:
    angles = torch.outer(scale_coordinates(side, norm), frequencies)  # (side, C / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, C / 2)
    columns = waves.repeat(side, 1)  # row-major: the column runs fastest
    return torch.cat([columns, waves.repeat_interleave(side, 0)], dim=1)  # (side * side, C)
