"""The rotary positions against plain float64 trigonometry, one number at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from star_cli.models.rope import rotate, rotation_table
from star_cli.models.schedule import ScaleSchedule
from tests.models.builders import laws, schedules


def turned(vector: list[float], column: float, row: float, theta: float) -> list[float]:
    """One head's vector at one place: adjacent channels turn, the first half of the pairs by column, others by row."""
    width = len(vector)
    result = []
    for pair in range(width // 2):
        place, index = (column, pair) if pair < width // 4 else (row, pair - width // 4)
        angle = place * theta ** (-4 * index / width)
        x, y = vector[2 * pair], vector[2 * pair + 1]
        result += [x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)]
    return result


@laws
@given(schedules, st.sampled_from([4, 8, 20]), st.sampled_from([100.0, 10000.0]), st.sampled_from([64.0, 7.0, -1.0]))
def test_rotation_is_plain_trigonometry(schedule: ScaleSchedule, width: int, theta: float, norm: float) -> None:
    vectors = torch.randn(1, 1, schedule.length, width, generator=torch.Generator().manual_seed(0))
    ours = rotate(vectors, rotation_table(schedule, width, theta, norm))[0, 0]
    expected = []
    for side in schedule.sides:
        stretch = norm / (side - 1) if side > 1 and norm >= 0 else 1.0
        for row in range(side):
            for column in range(side):
                vector = vectors[0, 0, len(expected)].tolist()
                expected.append(turned(vector, column * stretch, row * stretch, theta))
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-5)


def test_the_1x1_map_is_not_turned() -> None:
    vectors = torch.randn(2, 3, 1, 16)
    assert torch.equal(rotate(vectors, rotation_table(ScaleSchedule((1,)), 16, 10000.0, 64.0)), vectors)


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_normalised_scales_share_their_corners(corner: tuple[int, int]) -> None:
    tables = [
        rotation_table(ScaleSchedule((side,)), 16, 10000.0, 64.0).unflatten(0, (side, side)) for side in (2, 5, 16)
    ]
    for table in tables[1:]:
        torch.testing.assert_close(table[corner], tables[0][corner])


def test_scores_depend_on_the_distance_alone() -> None:
    table = rotation_table(ScaleSchedule((5,)), 16, 100.0, -1.0).unflatten(0, (5, 5))
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(1)).unbind(0)

    def score(query_at: tuple[int, int], key_at: tuple[int, int]) -> float:
        return float((rotate(query, table[query_at][None]) * rotate(key, table[key_at][None])).sum())

    assert score((0, 0), (2, 1)) == pytest.approx(score((2, 3), (4, 4)), abs=1e-5)
    assert score((0, 0), (2, 1)) != pytest.approx(score((0, 0), (1, 2)), abs=1e-3)


def test_compiled_rotation_is_the_same_in_real_numbers() -> None:
    vectors, table = torch.randn(2, 3, 21, 8), rotation_table(ScaleSchedule((1, 2, 4)), 8, 10000.0, 64.0)
    compiled = torch.compile(rotate, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(vectors, table), rotate(vectors, table))
    torch.compiler.reset()


def test_rotation_keeps_lengths_and_gives_float32() -> None:
    vectors = torch.randn(2, 2, 21, 8, dtype=torch.bfloat16)
    ours = rotate(vectors, rotation_table(ScaleSchedule((1, 2, 4)), 8, 10000.0, 64.0))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.norm(dim=-1), vectors.float().norm(dim=-1))
