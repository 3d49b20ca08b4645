import re
from pathlib import Path

import pytest

from star_cli.data.icons.catalogue import vocabulary
from star_cli.data.icons.words import plural, with_article

PROMPTS_FILE = Path(__file__).resolve().parents[3] / "prompts" / "icons.txt"


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"),
        ("mouse", "mice"),
        ("computer mouse", "computer mice"),
        ("wolf", "wolves"),
        ("fox", "foxes"),
        ("puppy", "puppies"),
        ("monkey", "monkeys"),
        ("tomato", "tomatoes"),
        ("burrito", "burritos"),
        ("tropical fish", "tropical fish"),
        ("maple leaf", "maple leaves"),
        ("slice of pizza", "slices of pizza"),
        ("house with a garden", "houses with a garden"),
        ("cat in love", "cats in love"),
        ("snowman", "snowmen"),
        ("police car", "police cars"),
        ("witch", "witches"),
    ],
)
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ("apple", "an apple"),
        ("red apple", "a red apple"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("UFO", "a UFO"),
        ("hourglass", "an hourglass"),
        ("SUV", "an SUV"),
        ("unripe apple", "an unripe apple"),
        ("office building", "an office building"),
        ("urn", "an urn"),
    ],
)
def test_articles(words: str, whole: str) -> None:
    assert with_article(words) == whole


def test_no_name_of_the_vocabulary_stands_for_two_objects() -> None:
    names = [name for row in vocabulary() for name in row.names]
    assert len(names) == len(set(names))


def test_the_vocabulary_is_large_enough() -> None:
    rows = vocabulary()
    assert len(rows) >= 600
    synonyms = [name for row in rows for name in row.names[1:]]
    assert len(synonyms) > 600


def test_the_first_objects_are_those_that_people_ask_for() -> None:
    first = vocabulary()[:150]
    assert len({row.category for row in first}) == 9
    names = {form.lower() for row in first for name in row.names for form in (name, plural(name))}
    lines = [line for line in PROMPTS_FILE.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(set(lines)) == 64
    for line in lines:
        assert any(re.search(rf"\b{re.escape(name)}\b", line) for name in names), line


def test_a_whole_animal_borrows_the_names_of_its_face() -> None:
    tabby = next(row for row in vocabulary() if row.names[0] == "tabby")
    assert "cat" in tabby.body_names
    assert "cat face" not in tabby.body_names
