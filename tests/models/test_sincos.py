"""Fixed positions against the formula, token by token and channel by channel."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from star_cli.models.schedule import ScaleSchedule
from star_cli.models.sincos import sincos_table
from tests.models.builders import laws, schedules


@laws
@given(schedules, st.sampled_from([4, 8, 20]), st.sampled_from([100.0, 10000.0]), st.sampled_from([64.0, 7.0, -1.0]))
def test_table_is_the_formula(schedule: ScaleSchedule, width: int, theta: float, norm: float) -> None:
    table = sincos_table(schedule, width, theta, norm)
    assert table.shape == (schedule.length, width)
    rows = iter(table.tolist())
    quarter = width // 4
    for side in schedule.sides:
        step = 1.0 if norm < 0 else norm / (side - 1) if side > 1 else 0.0
        for row in range(side):
            for column in range(side):
                expected = []
                for place in (column * step, row * step):
                    angles = [place / theta ** (i / quarter) for i in range(quarter)]
                    expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
                assert next(rows) == pytest.approx(expected, abs=1e-5)


def test_every_token_of_a_scale_has_a_place_of_its_own() -> None:
    table = sincos_table(ScaleSchedule((16,)), 64, 10000.0, 64.0)
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1
