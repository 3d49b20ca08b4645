from __future__ import annotations

import pytest
import torch

from star_cli.errors import OptionError
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.upscale import lengthen, move_to_schedule
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
