"""How many images go into a pass, and in which order what is done is told."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from star_cli.batch.events import Event, InOrder
from star_cli.batch.passes import FIRST, LARGEST, PassSize, Room


def passes(size: PassSize, seconds_per_image: dict[int, float], count: int) -> list[int]:
    """The sizes of some passes, when an image takes so long in a pass of this size."""
    sizes = []
    for _ in range(count):
        sizes.append(size.size)
        size.report(size.size, size.size * seconds_per_image[size.size])
    return sizes


def test_a_fixed_size_stays() -> None:
    assert set(passes(PassSize(3), {3: 1.0}, 10)) == {3}


def test_auto_grows_while_it_pays() -> None:
    seconds = {4: 1.0, 8: 0.7, 16: 0.6, 32: 0.61}
    assert passes(PassSize(), seconds, 10) == [4, 4, 8, 8, 16, 16, 32, 32, 16, 16]


def test_auto_stays_where_a_larger_pass_does_not_pay() -> None:
    assert passes(PassSize(), {4: 1.0, 8: 0.99}, 6) == [4, 4, 8, 8, 4, 4]


def test_auto_stays_where_memory_has_no_room() -> None:
    assert set(passes(PassSize(has_room=lambda: False), {FIRST: 1.0}, 9)) == {FIRST}


def test_auto_ends_at_the_largest() -> None:
    seconds = {2**power: 0.5**power for power in range(12)}
    assert passes(PassSize(), seconds, 40)[-1] == LARGEST


def test_out_of_memory_halves_for_good() -> None:
    size = PassSize()
    passes(size, {4: 1.0, 8: 0.5, 16: 0.2}, 4)
    size.halve(16)
    assert set(passes(size, {8: 0.5}, 9)) == {8}
    size.halve(2)
    size.halve(1)
    assert size.size == 1


def test_a_pass_that_is_not_full_says_nothing() -> None:
    size = PassSize()
    for _ in range(9):
        size.report(3, 1e-9)
    assert size.size == FIRST


def test_room_is_asked_of_the_system() -> None:
    assert isinstance(Room(torch.device("cpu"))(), bool)


@given(st.integers(0, 30), st.randoms())
def test_results_are_told_in_order_whatever_order_they_come_in(count: int, chance: random.Random) -> None:
    order = InOrder()
    numbers = [order.expect() for _ in range(count)]
    chance.shuffle(numbers)
    told: list[str] = []
    for number in numbers:
        order.give(number, None if number % 5 == 4 else Event("done", message=str(number)))
        told += [event.message for event in order.take()]
    assert told == [str(number) for number in range(count) if number % 5 != 4]


def test_what_waits_for_others_is_told_at_the_end() -> None:
    order = InOrder()
    order.give(2, Event("done", message="2"))
    order.give(1, Event("done", message="1"))
    assert order.take() == []
    assert [event.message for event in order.take_all()] == ["1", "2"]
