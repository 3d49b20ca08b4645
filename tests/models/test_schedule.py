from __future__ import annotations

import pytest
import torch
from hypothesis import given

from star_cli.errors import OptionError
from star_cli.models.schedule import ScaleSchedule
from tests.models.builders import laws, schedules


@laws
@given(schedules)
def test_slices_cut_all_tokens_without_gap_or_overlap(schedule: ScaleSchedule) -> None:
    tokens = list(range(schedule.length))
    parts = [tokens[schedule.slice(scale)] for scale in range(len(schedule))]
    assert [len(part) for part in parts] == [side**2 for side in schedule.sides] == list(schedule.sizes)
    assert [token for part in parts for token in part] == tokens


@laws
@given(schedules)
def test_mask_lets_a_token_see_its_own_scale_and_earlier_ones(schedule: ScaleSchedule) -> None:
    mask, levels = schedule.block_causal_mask(), schedule.levels().tolist()
    assert mask.dtype == torch.bool
    for row in range(schedule.length):
        for column in range(schedule.length):
            assert mask[row, column] == (levels[column] <= levels[row])


def test_numbers_of_the_published_256_pixel_schedule() -> None:
    schedule = ScaleSchedule((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    assert (len(schedule), schedule.length, schedule.last_side) == (10, 680, 16)
    assert schedule.offsets[:4] == (0, 1, 5, 14)
    assert schedule.levels()[[0, 1, 4, 5, 679]].tolist() == [0, 1, 1, 2, 9]


def test_a_schedule_with_levels_of_its_own_starts_at_its_first_row() -> None:
    schedule = ScaleSchedule((1, 2), first_level=5)
    assert schedule.levels().tolist() == [5, 6, 6, 6, 6]
    assert torch.equal(schedule.block_causal_mask(), ScaleSchedule((1, 2)).block_causal_mask())


def test_prefix_keeps_the_first_scales_and_their_levels() -> None:
    assert ScaleSchedule((1, 2, 4), first_level=3).prefix(2) == ScaleSchedule((1, 2), first_level=3)


def test_progress_runs_from_0_to_1() -> None:
    assert [ScaleSchedule((1, 2, 3)).progress(scale) for scale in range(3)] == [0, 0.5, 1]
    assert ScaleSchedule((4,)).progress(0) == 0


@pytest.mark.parametrize(
    ("sides", "sentence"),
    [
        ((), "a scale schedule needs sides of at least 1, not []"),
        ((0, 2), "a scale schedule needs sides of at least 1, not [0, 2]"),
        ((1, 2.0), "sides and first level of a schedule are whole numbers, not [1, 2.0], 0"),
        ((True, 2), "sides and first level of a schedule are whole numbers, not [True, 2], 0"),
        ((1, 4, 2), "the last side of a scale schedule must be its largest: [1, 4, 2]"),
    ],
)
def test_impossible_sides_are_refused(sides: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        ScaleSchedule(sides)
    assert str(refused.value) == sentence
