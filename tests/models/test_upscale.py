from __future__ import annotations

import pytest
import torch

from star_cli.errors import OptionError
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.upscale import copy_levels, lengthen, move_to_schedule, nearest_scales
from tests.models.builders import random_input, text, tiny_transformer

LONGER = ScaleSchedule((1, 2, 4, 6, 7, 8, 9, 10, 11))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_moved_model_draws_the_old_schedule_as_before() -> None:
    model, schedule = tiny_transformer(stable_head=True, stable_blocks=1, stable_from=1), ScaleSchedule((1, 2, 4))
    moved = move_to_schedule(model, LONGER, generator()).eval()
    assert (model.config.levels, moved.config.levels) == (8, 9)
    assert moved.stable is not None
    assert moved.stable.level_embedding.num_embeddings == 9
    given = random_input(1, schedule)
    with torch.no_grad():
        before, after = (one(one.prompt(text(1)), given, schedule) for one in (model, moved))
        longer = moved(moved.prompt(text(1)), random_input(1, LONGER), LONGER)
    assert torch.equal(before, after)
    assert longer.shape[1] == LONGER.length
    moved.head.weight.data.zero_()
    assert model.head.weight.abs().sum() > 0, "the weights are its own"


def test_a_schedule_only_grows() -> None:
    with pytest.raises(OptionError, match="8 rows cannot become 3: a schedule only grows"):
        move_to_schedule(tiny_transformer(), ScaleSchedule((1, 2, 4)), generator())


def test_new_rows_repeat_the_last_or_follow_the_generator() -> None:
    rows = torch.randn(3, 4, generator=generator())
    assert torch.equal(lengthen(rows, 5, generator(), repeat_last=True)[2:], rows[2:].expand(3, 4))
    first, second = (lengthen(rows, 6, generator()) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first[:3], rows)
    assert torch.equal(lengthen(rows, 3, generator()), rows)


SMALL, LARGE = ScaleSchedule((1, 2, 4)), ScaleSchedule((1, 2, 4, 8), 3)


@pytest.mark.parametrize(
    ("rule", "taken"),
    [
        ("nearest_side", [0, 1, 2, 2]),  # sides 1 2 4 8 beside 1 2 4
        ("nearest_normalised", [0, 0, 1, 2]),  # 1/8 1/4 1/2 1 beside 1/4 1/2 1
        ("published", [0, 1, 2]),
    ],
)
def test_new_level_rows_follow_the_rule(rule: str, taken: list[int]) -> None:
    transformer = tiny_transformer(levels=7, stable_head=True, stable_blocks=1)
    assert transformer.stable is not None
    tables = (transformer.level_embedding.weight, transformer.stable.level_embedding.weight)
    before = [table.detach().clone() for table in tables]
    copy_levels(transformer, SMALL, LARGE, rule, generator())  # type: ignore[arg-type]
    for known, now in zip(before, tables, strict=True):
        assert torch.equal(now[:3], known[:3])
        assert torch.equal(now[3 : 3 + len(taken)], known[taken])
        assert (len(taken) < 4) == (not any(torch.equal(now[6], row) for row in known[:3]))


def test_published_rows_of_a_level_modulated_model_repeat_the_last() -> None:
    transformer = tiny_transformer(levels=7, modulation="level")
    copy_levels(transformer, SMALL, LARGE, "published")
    assert torch.equal(transformer.level_embedding.weight[6], transformer.level_embedding.weight[2])


def test_normalised_sides_keep_first_and_last_scale_of_the_published_schedules() -> None:
    at_256 = ScaleSchedule((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    at_512 = ScaleSchedule((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
    assert nearest_scales(at_256, at_512, is_normalised=True) == [0, 0, 0, 1, 2, 3, 5, 6, 8, 9]
    assert nearest_scales(at_256, at_512, is_normalised=False) == [0, 1, 2, 3, 5, 6, 8, 9, 9, 9]


def test_rows_that_are_not_there_are_refused() -> None:
    with pytest.raises(OptionError, match="5 level rows are too few for these schedules"):
        copy_levels(tiny_transformer(levels=5), SMALL, LARGE)
    with pytest.raises(OptionError, match="a schedule only grows"):
        copy_levels(tiny_transformer(levels=7), LARGE, SMALL, "published")
