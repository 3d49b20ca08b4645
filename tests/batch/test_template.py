"""File names: legal everywhere, unique, inside the folder, whatever the prompt."""

from __future__ import annotations

import json
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_cli.batch.template import FIELDS, NameTemplate, check_name, numbered
from star_cli.errors import OptionError
from star_cli.names import name_of
from tests.batch.conftest import PlanOf, fuzz

VALUES: dict[str, Any] = {**FIELDS, "index": 7, "slug": "a-red-circle", "seed": 3}


def is_legal(name: str) -> bool:
    """On Linux, macOS and Windows, and inside the folder; written without the code under test."""
    windows = PureWindowsPath(name)
    parts = name.split("/")
    return (
        not windows.is_absolute()
        and not windows.drive
        and not PurePosixPath(name).is_absolute()
        and all(part not in ("", ".", "..") for part in parts)
        and all(not set(part) & set('<>:"\\|?*') and min(map(ord, part)) >= 32 for part in parts)
        and all(part[-1] not in ". " and len(part.encode()) <= 255 for part in parts)
        and all(part.split(".")[0].strip().upper() not in DEVICES for part in parts)
    )


DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{name}{number}" for name in ("COM", "LPT") for number in range(10))}


def test_default_template_has_index_slug_and_seed() -> None:
    assert NameTemplate().name(VALUES) == "00007-a-red-circle-3.png"
    assert NameTemplate(format="webp").name(VALUES) == "00007-a-red-circle-3.webp"
    assert NameTemplate(usual="jpeg").name(VALUES) == "00007-a-red-circle-3.jpg"


def test_suffix_of_the_template_decides_the_format() -> None:
    assert NameTemplate("{slug}.JPG").format == "jpeg"
    assert NameTemplate("{slug:.5}.v1").name(VALUES) == "a-red.v1.png"
    assert NameTemplate("{model}/{res}/{hash}.webp", usual="png").name(VALUES) == f"model/256/{'0' * 12}.webp"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{prompt}", "unknown field {prompt}"),
        ("{}", "unknown field {}"),
        ("{0}", "unknown field {0}"),
        ("{slug!r}", "unknown field {slug!r}"),
        ("{slug.__class__}", "unknown field {slug.__class__}"),
        ("{index:{seed}d}", "cannot be read"),
        ("{index:c}", "cannot be read"),
        ("{index:/>5}", "cannot be read"),
        ("{index:0999d}", "cannot be read"),
        ("{slug", "expected '}'"),
        ("../{slug}", "leads out of the folder"),
        ("/tmp/{slug}", "leads out of the folder"),
        ("a//{slug}", "a part of it is empty"),
        (".hidden/{slug}", "a part begins with a dot"),
        ("{slug}?.png", "'?' cannot stand in a file's name"),
        ("C:{slug}", "':' cannot stand"),
        ("a\\{slug}", "cannot stand"),
        (" {slug}", "begins or ends with a space"),
        ("x" * 300, "is too long"),
        ("{slug}{slug}{slug}{slug}", "is too long"),
        ("star-batch.JSONL/{slug}", "is the journal, not a folder"),
        ("", "a part begins with a dot"),
    ],
)
def test_template_that_cannot_name_files_is_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError) as caught:
        NameTemplate(text)
    assert words in str(caught.value)


def test_template_and_format_must_agree() -> None:
    with pytest.raises(OptionError, match="names png files, but --format says webp"):
        NameTemplate("{slug}.png", "webp")


@pytest.mark.parametrize(("slug", "name"), [("con", "con_.png"), ("nul", "nul_.png"), ("com1", "com1_.png")])
def test_names_of_windows_devices_are_avoided(slug: str, name: str) -> None:
    assert NameTemplate("{slug}").name({**VALUES, "slug": slug}) == name
    assert NameTemplate("{slug}/x").name({**VALUES, "slug": slug}) == f"{slug}_/x.png"


@pytest.mark.parametrize(
    "name",
    ["../x.png", "/x.png", "a/../../x.png", "x\0.png", "a:b.png", "con./x", ".", "a/.b", "star-batch.jsonl/x.png"],
)
def test_name_that_leads_out_or_is_illegal_is_refused(name: str) -> None:
    with pytest.raises(OptionError):
        check_name(name, "out")


def test_numbered_names_keep_folder_and_suffix() -> None:
    assert [numbered("a/b.c.png", count) for count in (1, 2)] == ["a/b.c.png", "a/b.c-2.png"]


TEMPLATES = [
    "{index:05d}-{slug}-{seed}",
    "{slug}",
    "{slug}/{seed}.webp",
    "{model}-{slug:.9}.jpg",
    "{hash}{number}{line}",
]


@fuzz(200)
@given(st.text(min_size=1), st.sampled_from(TEMPLATES), st.integers(0, 2**63 - 1))
def test_any_prompt_gives_a_legal_name(prompt: str, template: str, seed: int) -> None:
    name = NameTemplate(template).name({**VALUES, "slug": name_of(prompt), "seed": seed})
    assert is_legal(name)
    assert name.isascii()


@fuzz(200)
@given(st.text(st.sampled_from("{}sluginde:05d/.\\con \x00é.-%!"), max_size=30))
def test_any_template_is_refused_or_gives_legal_names(text: str) -> None:
    try:
        template = NameTemplate(text)
    except OptionError:
        return
    for slug in ("con", "x", "a-b"):
        assert is_legal(template.name({**VALUES, "slug": slug}))


OUT = st.text(st.sampled_from("ab/.\\ Con:é\u0301É?-"), min_size=1, max_size=12)


def test_any_rows_give_unique_legal_names_inside_the_folder(plan_of: PlanOf) -> None:
    @fuzz(100)
    @given(
        st.lists(st.tuples(st.sampled_from(["Aux", "a cat", "A CAT!", "赤"]), st.none() | OUT), min_size=1, max_size=12)
    )
    def check(rows: list[tuple[str, str | None]]) -> None:
        kept = []
        for prompt, out in rows:
            line = json.dumps({"prompt": prompt, "out": out, "num": 2})
            try:
                plan_of(line, "jsonl", "{slug}")
            except OptionError:
                continue
            kept.append(line)
        if not kept:
            return
        names = [job.file for job in plan_of("\n".join(kept), "jsonl", "{slug}").jobs()]
        assert len({name.casefold() for name in names}) == len(names) == 2 * len(kept)
        assert all(is_legal(name) for name in names), names

    check()
