"""Lines of text, JSON and tables: what they say, and what is wrong with them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from star_cli.batch.rows import COLUMNS, Problem, RawRow, read_rows
from tests.batch.conftest import fuzz


def read(text: str | bytes, kind: Any = "text") -> list[RawRow | Problem]:
    data = text.encode() if isinstance(text, str) else text
    return list(read_rows(io.BytesIO(data), kind))


def said(text: str | bytes, kind: Any = "text") -> list[tuple[int, dict[str, Any]]]:
    rows = read(text, kind)
    assert all(isinstance(row, RawRow) for row in rows), rows
    return [(row.line, row.values) for row in rows if isinstance(row, RawRow)]


def problems(text: str | bytes, kind: Any) -> list[tuple[int, str]]:
    return [(row.line, row.message) for row in read(text, kind) if isinstance(row, Problem)]


def test_text_is_a_prompt_a_line_without_comments_and_empty_lines() -> None:
    text = "\ufeff# shapes\r\na red circle\r\n\r\n  \n  # more\na cat # sat\n last"
    assert said(text) == [
        (2, {"prompt": "a red circle"}),
        (6, {"prompt": "a cat # sat"}),
        (7, {"prompt": " last"}),
    ]


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
@pytest.mark.parametrize("code", ["utf-16-le", "utf-16-be"])
def test_utf16_is_named(kind: str, code: str) -> None:
    assert problems("\ufeffprompt\n".encode(code), kind) == [(1, "the text is UTF-16: save it as UTF-8")]


def test_json_lines_say_any_option() -> None:
    text = '{"prompt": "x", "seed": 7, "guidance": 3, "stable": true}\n\n{"class": 5, "top-k": 9, "out": null}\n'
    assert said(text, "jsonl") == [
        (1, {"prompt": "x", "seed": 7, "guidance": 3.0, "stable": True}),
        (3, {"class": "5", "top_k": 9}),
    ]


def test_spaces_around_the_cells_of_a_table_mean_nothing_but_in_prompts() -> None:
    lines = ["prompt, seed, format, speed\n", " a cat , 5, webp, fast\n"]
    (row,) = read_rows((line.encode() for line in lines), "csv")
    assert isinstance(row, RawRow)
    assert row.values == {"prompt": " a cat ", "seed": 5, "format": "webp", "speed": "fast"}


def test_tables_have_heads_quotes_and_empty_cells() -> None:
    text = '\ufeffPrompt,Seed,top-p,stable\r\n"a red, round\ncircle",7,,yes\r\n\r\nx,,0.5,no\r\n'
    assert said(text, "csv") == [
        (2, {"prompt": "a red, round\ncircle", "seed": 7, "stable": True}),
        (5, {"prompt": "x", "top_p": 0.5, "stable": False}),
    ]
    assert said("prompt\tout\na, b\tc.png\n", "tsv") == [(2, {"prompt": "a, b", "out": "c.png"})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "x", "sed": 1}', "unknown column 'sed'; there are prompt, "),
        ('{"prompt": "x", "model": "y"}', "model holds for all images: give --model, not a column"),
        ('{"prompt": "x", "seed": "1"}', "seed must be a whole number, not '1'"),
        ('{"prompt": "x", "seed": true}', "seed must be a whole number, not True"),
        ('{"prompt": "x", "seed": 1.0}', "seed must be a whole number, not 1.0"),
        ('{"prompt": "x", "guidance": NaN}', "not JSON: NaN is not a number"),
        ('{"prompt": 5}', "prompt must be text, not 5"),
        ('{"prompt": ["x"]}', "prompt must be text, not ['x']"),
        ('{"prompt": "x", "prompt": "y"}', "a name is there twice"),
        ('{"prompt": "x", "top-k": 3, "top_k": 7}', "top_k is there twice"),
        ('{"prompt": "x", "Seed": null, "seed": 7}', "seed is there twice"),
        ("[1]", "not a JSON object"),
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: "),
        ('{"seed": ' + "9" * 5000 + "}", "not JSON: "),
    ],
)
def test_json_line_that_cannot_be_used_is_named(line: str, words: str) -> None:
    ((number, message),) = problems(f'{{"prompt": "fine"}}\n{line}\n', "jsonl")
    assert number == 2
    assert words in message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("prompt,sed\nx,1\n", 1, "unknown column 'sed'"),
        ("seed,res\n1,2\n", 1, "the first line names no column prompt"),
        ("prompt,Prompt\nx,y\n", 1, "a column is there twice"),
        ("prompt,seed\nx,1\ny,one\n", 3, "seed must be a whole number, not 'one'"),
        ("prompt\na, b\n", 2, "2 fields, but 1 columns: quote a field that holds a comma"),
        ('prompt\nx\n"open\n\n', 3, "not a table from here on: unexpected end of data"),
        ("prompt,stable\nx,maybe\n", 2, "stable must be true or false, not 'maybe'"),
        ("prompt,guidance\nx,1e999x\n", 2, "guidance must be a number"),
    ],
)
def test_table_that_cannot_be_used_is_named(text: str, line: int, words: str) -> None:
    ((number, message),) = problems(text, "csv")
    assert number == line
    assert words in message


@fuzz(200)
@given(st.binary(max_size=300), st.sampled_from(["text", "jsonl", "csv", "tsv"]))
def test_any_bytes_are_read_line_by_line(data: bytes, kind: str) -> None:
    lines = data.count(b"\n") + data.count(b"\r") + 1
    for row in read(data, kind):
        assert 1 <= row.line <= lines + 1
        if isinstance(row, RawRow):
            assert set(row.values) <= set(COLUMNS)


@fuzz(200)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), min_size=1)))
def test_every_line_of_text_comes_back_as_it_was(prompts: list[str]) -> None:
    wanted = [prompt for prompt in prompts if prompt.strip() and not prompt.lstrip().startswith("#")]
    assert [values["prompt"] for _, values in said("\r\n".join(prompts))] == wanted
