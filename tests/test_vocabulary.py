"""Words that a model has read, and those it has not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_cli.vocabulary import split_words, unknown_words

KNOWN = split_words(["a cat's face on {x} grass", "three ice-cream cones", "snow"])


def test_words_are_split_in_small_letters_without_gaps() -> None:
    assert {"cat's", "face", "grass", "three", "ice-cream", "cones"} == KNOWN - {"a", "on", "snow"}


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("a snow-face on GRASS, three!", []),
        ("quantum chromodynamics, a quantum", ["quantum", "chromodynamics"]),
        ("snow\u2019s face", []),
        ("a snow--face", []),
        ("neige d'\u00e9t\u00e9", ["neige", "d'\u00e9t\u00e9"]),
        ("\u732b", ["\u732b"]),
        ("... -- '' \U0001f408", []),
        ("", []),
    ],
)
def test_unknown_words_are_told_once_in_their_order(prompt: str, unknown: list[str]) -> None:
    assert unknown_words(prompt, KNOWN) == unknown


@given(st.text(st.characters(exclude_characters="{}")))
def test_what_was_split_is_known(text: str) -> None:
    assert unknown_words(text, split_words([text])) == []
