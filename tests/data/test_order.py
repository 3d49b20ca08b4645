"""The order of pictures: each once an epoch, another order each epoch, any position found at once."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_cli.data.order import RowOrder
from star_cli.errors import OptionError

counts, seeds = st.integers(1, 300), st.integers(0, 2**64)


@given(counts, seeds, st.integers(0, 5))
def test_every_row_comes_once_an_epoch(count: int, seed: int, epoch: int) -> None:
    order = RowOrder(count, seed)
    assert sorted(order.at(epoch * count + place) for place in range(count)) == list(range(count))


@given(counts, seeds, st.integers(1, 40), st.integers(0, 30))
def test_steps_follow_each_other_without_gap_or_overlap(count: int, seed: int, batch_size: int, step: int) -> None:
    order = RowOrder(count, seed)
    one_by_one = [order.at(position) for position in range(step * batch_size, (step + 2) * batch_size)]
    assert order.rows(step, batch_size) + order.rows(step + 1, batch_size) == one_by_one


@given(counts, seeds, st.integers(1, 40), st.integers(0, 10**9))
def test_a_step_is_the_same_whenever_it_is_asked_for(count: int, seed: int, batch_size: int, step: int) -> None:
    order = RowOrder(count, seed)
    assert order.rows(step, batch_size) == RowOrder(count, seed).rows(step, batch_size)


@given(st.integers(20, 300), seeds)
def test_epochs_and_seeds_have_orders_of_their_own(count: int, seed: int) -> None:
    first, second = (RowOrder(count, seed).rows(epoch, count) for epoch in (0, 1))
    other = RowOrder(count, seed + 1).rows(0, count)
    assert first != second
    assert first != other


def test_a_billion_rows_need_no_list() -> None:
    order = RowOrder(10**9, 0)
    rows = order.rows(10**12, 256)
    assert len(set(rows)) == 256
    assert all(0 <= row < 10**9 for row in rows)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 60])
def test_every_row_comes_first_about_as_often_as_any_other(count: int) -> None:
    epochs = 400 * count
    firsts = Counter(RowOrder(count, seed).at(0) for seed in range(epochs))
    chi_square = sum((firsts[row] - 400) ** 2 / 400 for row in range(count))
    assert chi_square < (count - 1) + 5 * (2 * (count - 1)) ** 0.5  # mean and five deviations


def test_neighbours_in_the_set_are_no_neighbours_in_the_order() -> None:
    rows = RowOrder(1000, 0).rows(0, 1000)
    steps = [abs(after - before) for before, after in pairwise(rows)]
    assert 300 < sum(steps) / len(steps) < 370  # a third of 1000 when shuffled


def test_no_rows_are_refused() -> None:
    with pytest.raises(OptionError, match="at least one row"):
        RowOrder(0, 0)
