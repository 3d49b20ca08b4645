"""Axial 2-D rotary positions, normalised so that every scale spans the same range (STAR, section on normalised RoPE).

Letters: B images, N heads, L tokens, K head width, P = K / 2 rotated pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star_cli.models.schedule import ScaleSchedule


def rotation_table(schedule: ScaleSchedule, head_width: int, theta: float, norm: float) -> Tensor:
    """By how much queries and keys turn: cosine and sine of each angle, (L, P, 2), float32.

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
    return torch.view_as_real(torch.polar(torch.ones_like(both), both))


def rotate(vectors: Tensor, table: Tensor) -> Tensor:
    """Turn queries or keys (B, N, L, K), whose adjacent channels pair, by the table, (L, P, 2) or (B, 1, L, P, 2).

    Returns:
        (B, N, L, K), float32.
    """
    pairs = vectors.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch's compiler makes code for real numbers alone
        (x, y), (cosine, sine) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([x * cosine - y * sine, x * sine + y * cosine], dim=-1).flatten(-2)
    # complex multiplication is one kernel; the same in real arithmetic is several, and several times slower
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)).flatten(-2)
