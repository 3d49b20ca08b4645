"""What is drawn by chance: the same again for seed, step and row, and as often as asked."""

from __future__ import annotations

import math

import pytest
import torch

from star_cli.models.schedule import ScaleSchedule
from star_cli.training.noise import Chance

CHANCE = Chance("star", seed=3, step=7)
TOKENS = torch.arange(16).repeat(4, 50)  # (4, 800)


def draws(chance: Chance, rows: list[int]) -> list[torch.Tensor]:
    """Everything that is drawn row by row; rows are the first dimension."""
    return [
        chance.noisy_tokens(TOKENS[rows], rows, 0.5, 16),
        chance.branch_weights(6, rows, 0.5).movedim(-1, 0),
        chance.visible_tokens(rows, 40),
    ]


def test_a_row_draws_the_same_in_whatever_part_of_the_batch_it_is() -> None:
    whole = draws(CHANCE, [0, 1, 2, 3])
    torch.manual_seed(99)
    for rows in ([0, 2], [1, 3], [2]):
        assert all(torch.equal(part, of_all[rows]) for part, of_all in zip(draws(CHANCE, rows), whole, strict=True))


@pytest.mark.parametrize("other", [Chance("finetune", 3, 7), Chance("star", 4, 7), Chance("star", 3, 8)])
def test_stage_seed_step_and_row_each_decide(other: Chance) -> None:
    rows = [0, 1]
    assert not any(torch.equal(one, two) for one, two in zip(draws(CHANCE, rows), draws(other, rows), strict=True))
    assert not any(torch.equal(drawn[0], drawn[1]) for drawn in draws(CHANCE, rows))


def test_tokens_are_replaced_as_often_as_asked_by_any_code() -> None:
    noisy = CHANCE.noisy_tokens(TOKENS, range(4), 0.2, 32)
    changed = noisy != TOKENS
    assert changed.float().mean().item() == pytest.approx(0.2 * 31 / 32, abs=0.03)
    assert set(noisy[changed].tolist()) == set(range(32))
    assert torch.equal(CHANCE.noisy_tokens(TOKENS, range(4), 0.0, 32), TOKENS)


def test_branches_are_left_out_more_often_the_deeper_and_count_alike_in_the_mean() -> None:
    weights = CHANCE.branch_weights(5, range(2000), 0.4)  # (5, 2, 2000)
    left_out = (weights == 0).float().mean((1, 2)).tolist()
    assert left_out == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=0.02)
    assert left_out[0] == 0
    assert weights.mean((1, 2)).tolist() == pytest.approx([1.0] * 5, abs=0.03)
    together = ((weights[4, 0] == 0) & (weights[4, 1] == 0)).float().mean().item()
    assert together == pytest.approx(0.16, abs=0.03), "the two branches of a block are left out independently"


def test_token_drop_keeps_the_count_and_every_earlier_scale() -> None:
    schedule = ScaleSchedule((1, 2, 4, 8))
    keep = CHANCE.kept_tokens(schedule, 60)
    assert keep is not None
    assert keep.sum() == 60
    assert keep[:21].all()
    again, later = (Chance("star", 3, step).kept_tokens(schedule, 60) for step in (7, 8))
    assert again is not None
    assert later is not None
    assert torch.equal(keep, again)
    assert not torch.equal(keep, later)
    assert (
        CHANCE.kept_tokens(schedule, 0) is CHANCE.kept_tokens(schedule, 85) is CHANCE.kept_tokens(schedule, 99) is None
    )


def test_1024_pixels_keep_the_published_number_of_tokens() -> None:
    schedule = ScaleSchedule((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64))
    keep = CHANCE.kept_tokens(schedule, 8800)
    assert (schedule.length, keep is not None and int(keep.sum())) == (9451, 8800)


def test_visible_shares_are_those_of_an_arccosine() -> None:
    visible = CHANCE.visible_tokens(range(3000), 200).float().mean(1)
    # arccos(r) / (pi / 2) of an even r: mean 2 / pi, and below 1/2 as often as r is above cos(pi / 4)
    assert visible.mean().item() == pytest.approx(2 / math.pi, abs=0.02)
    assert (visible < 0.5).float().mean().item() == pytest.approx(1 - math.cos(math.pi / 4), abs=0.03)
