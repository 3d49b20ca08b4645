"""Parts of a set of pictures, and what is held out of it."""

from __future__ import annotations

import random

import pytest
import torch

from star_cli.data.part import Part, hold_out
from star_cli.errors import DataError
from tests.training.pictures import Pictures


def test_a_part_is_the_chosen_pictures_of_the_whole() -> None:
    whole = Pictures(5)
    part = Part(whole, [3, 1])
    assert len(part) == 2
    assert part.name(0) == "picture 3"
    assert part.captions(1) == whole.captions(1)
    assert part.caption(1, random.Random(0)) == whole.caption(1, random.Random(0))
    one, other = (each.pixels(index, 16, "random", random.Random(0)) for each, index in ((part, 0), (whole, 3)))
    assert torch.equal(one, other)
    assert part.fingerprint != whole.fingerprint
    assert part.fingerprint != Part(whole, [1, 3]).fingerprint


def test_what_is_held_out_is_spread_over_the_set_and_not_trained_on() -> None:
    learned, held = hold_out(Pictures(10), 3)
    names = [{part.name(index) for index in range(len(part))} for part in (learned, held)]
    assert names[1] == {"picture 0", "picture 3", "picture 6"}
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 10


def test_a_set_that_would_be_held_out_whole_is_refused() -> None:
    with pytest.raises(DataError, match="cannot hold 3"):
        hold_out(Pictures(3), 3)
