"""Axial 2-D rotary positions, normalised so that every scale spans the same range (STAR, section on normalised RoPE).

Letters: B images, N heads, L tokens, K head width, P = K / 2 rotated pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star_cli.models.schedule import ScaleSchedule


def rotation_table(schedule: ScaleSchedule, head_width: int, theta: float, norm: float) -> Tensor:
    """Unit complex numbers by which queries and keys turn, (L, P), complex64.

    The first half of the pairs turns with the column, the second with the row. Columns and rows of each scale run from
    0 to `norm`, whatever its side; the 1x1 map stays at 0. A negative `norm` keeps raw token coordinates.
    """
    frequencies = theta ** (-torch.arange(0, head_width, 4, dtype=torch.float32) / head_width)  # (K / 4,)
    return torch.cat([_scale_table(side, frequencies, norm) for side in schedule.sides])


def scale_coordinates(side: int, norm: float) -> Tensor:
    """Place of each column, or row, of one scale: 0 to `norm`, raw when that is negative; (side,)."""
    coordinates = torch.arange(side, dtype=torch.float32)
    return coordinates / (side - 1) * norm if norm >= 0 and side > 1 else coordinates


def _scale_table(side: int, frequencies: Tensor, norm: float) -> Tensor:
    angles = torch.outer(scale_coordinates(side, norm), frequencies)  # (side, K / 4)
    columns = angles.repeat(side, 1)  # row-major: the column runs fastest
    rows = angles.repeat_interleave(side, 0)
    both = torch.cat([columns, rows], dim=1)  # (side * side, P)
    return torch.polar(torch.ones_like(both), both)


def rotate(vectors: Tensor, table: Tensor) -> Tensor:
    """Turn queries or keys (B, N, L, K) by the table, (L, P) or (B, 1, L, P); adjacent channels pair. Float32 out."""
    # complex multiplication is one fused kernel; the same in real arithmetic is several times slower in eager mode
    pairs = torch.view_as_complex(vectors.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2)
