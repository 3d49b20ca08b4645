"""Fields from the command line, and fields written out."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_cli.errors import OptionError
from star_cli.training.config import LoopConfig
from star_cli.training.fields import explanations, to_toml, with_changes

KEYS = st.text(min_size=1, max_size=8)
VALUES = (
    st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.lists(st.integers(0, 9), max_size=4)
)
SETTINGS = st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4), max_size=6)


@given(SETTINGS)
def test_what_is_written_reads_back_as_the_same(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


def test_lists_of_sections_and_comments() -> None:
    values = {"name": "x", "star": {"loop": {"steps": 3}, "portions": [{"share": 0.5}, {"share": 1.0}]}, "none": None}
    text = to_toml(values, {"star.loop": LoopConfig})
    assert tomllib.loads(text) == {"name": "x", "star": values["star"]}
    assert "# Optimiser steps of the stage.\nsteps = 3" in text


def test_every_field_of_the_loop_is_explained() -> None:
    assert set(explanations(LoopConfig)) == {field.name for field in fields(LoopConfig)}


def test_changes_reach_into_sections_and_lists() -> None:
    values = {"star": {"loop": {"steps": 3}, "portions": [{"share": 0.5}]}}
    changed = with_changes(
        values, ["star.loop.steps=10", "star.portions.0.share = 1", "name=my model", 'x.y=["a", 2]', "seed=-1"]
    )
    assert changed["star"] == {"loop": {"steps": 10}, "portions": [{"share": 1}]}
    assert (changed["name"], changed["x"], changed["seed"]) == ("my model", {"y": ["a", 2]}, -1)
    assert values["star"]["loop"]["steps"] == 3


@pytest.mark.parametrize("change", ["star.loop.steps", "=3", "star.loop.steps.x=3", "star.portions.4.share=1"])
def test_change_that_leads_nowhere_is_refused(change: str) -> None:
    with pytest.raises(OptionError, match="--set"):
        with_changes({"star": {"loop": {"steps": 3}, "portions": [{"share": 0.5}]}}, [change])
