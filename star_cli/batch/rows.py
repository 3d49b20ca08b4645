"""The input of a batch, line by line: text, JSON lines, CSV or TSV become rows of plain values, each with its line.

Nothing is checked here but the form: what the values mean is for `plan.py`.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

InputKind = Literal["text", "jsonl", "csv", "tsv"]
KINDS: dict[str, InputKind] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}
"""Kind of input by a file's suffix; any other is text."""

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KIND_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
COLUMNS: dict[str, type] = {
    **dict.fromkeys(("prompt", "class", "negative", "out", "format"), str),
    **dict.fromkeys(("seed", "num", "res", "top_k", "smooth"), int),
    **dict.fromkeys(("guidance", "top_p", "temperature"), float),
    "stable": bool,
    "speed": str,
}
"""What a row may say, and of which kind it is."""
_FLAGS_ALONE = {"model", "device", "dtype", "quantize", "compat"}
_WORDS_AS_WRITTEN = ("prompt", "negative")
"""Columns whose spaces count; those around other cells of a table mean nothing."""
_LARGEST_FIELD = 10**6
"""Characters of a CSV field."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line of the input cannot be drawn."""

    line: int
    """1 is the first; 0 is the input as a whole."""
    message: str


@dataclass(frozen=True, slots=True)
class RawRow:
    """What a line says, by the names of `COLUMNS`."""

    line: int
    values: dict[str, Any]


def kind_of(path: Path) -> InputKind:
    """The kind of input that a file's suffix names."""
    return KINDS.get(path.suffix.lower(), "text")


def read_rows(file: Iterable[bytes], kind: InputKind) -> Iterator[RawRow | Problem]:
    """Every line that says something, in order.

    Args:
        file: lines of bytes, as an open file gives them. UTF-8; a byte-order mark and CRLF are no part of the text.
        kind: of the input.
    """
    readers: dict[InputKind, Callable[[Iterator[str]], Iterator[RawRow | Problem]]] = {
        "text": _read_text,
        "jsonl": _read_json_lines,
        "csv": lambda lines: _read_table(lines, ","),
        "tsv": lambda lines: _read_table(lines, "\t"),
    }
    lines = iter(file)
    first = next(lines, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as some shells on Windows redirect
        yield Problem(1, "the text is UTF-16: save it as UTF-8")
        return
    yield from readers[kind](_decoded(itertools.chain([first], lines)))


def _decoded(file: Iterable[bytes]) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 stay visible, for the check of the words to name them."""
    for number, line in enumerate(file):
        text = line.decode("utf-8", errors="surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text


def is_prompt(line: str) -> bool:
    """Whether a line of text is one: not empty, and no comment, which begins with #."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _read_text(lines: Iterator[str]) -> Iterator[RawRow]:
    for number, line in enumerate(lines, start=1):
        text = line.removesuffix("\n").rstrip("\r")
        if is_prompt(text):
            yield RawRow(number, {"prompt": text})


def _read_json_lines(lines: Iterator[str]) -> Iterator[RawRow | Problem]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            yield Problem(number, f"not JSON: {error}")
            continue
        if not isinstance(said, dict):
            yield Problem(number, 'not a JSON object: write it like {"prompt": "a red circle", "seed": 7}')
            continue
        yield _row(number, said, value_from_json)


def _read_table(lines: Iterator[str], delimiter: str) -> Iterator[RawRow | Problem]:
    csv.field_size_limit(_LARGEST_FIELD)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    heads: list[str] | None = None
    while True:
        number = reader.line_num + 1  # a quoted field may go on over several lines
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(number, f"not a table from here on: {error}")
            return
        if not any(cell.strip() for cell in cells):
            continue
        if heads is None:
            heads = [_column(cell) for cell in cells]
            if problem := _wrong_heads(heads):
                yield Problem(number, problem)
                return
        elif len(cells) > len(heads):
            yield Problem(number, f"{len(cells)} fields, but {len(heads)} columns: quote a field that holds a comma")
        else:
            pairs = [(head, cell) for head, cell in zip(heads, cells, strict=False) if cell.strip()]
            said = {head: cell if head in _WORDS_AS_WRITTEN else cell.strip() for head, cell in pairs}
            yield _row(number, said, value_from_text)


def _wrong_heads(heads: list[str]) -> str | None:
    if unknown := [head for head in heads if head not in COLUMNS]:
        return _unknown(unknown)
    if len(set(heads)) < len(heads):
        return "a column is there twice"
    return None if {"prompt", "class"} & set(heads) else "the first line names no column prompt"


def _row(line: int, said: dict[str, Any], read: Callable[[Any, type], Any]) -> RawRow | Problem:
    names = [_column(name) for name in said]
    if twice := next((name for name in names if names.count(name) > 1), None):
        return Problem(line, f"{twice} is there twice")
    said = {_column(name): value for name, value in said.items() if value is not None}
    if unknown := [name for name in said if name not in COLUMNS]:
        return Problem(line, _unknown(unknown))
    values = {}
    for name, value in said.items():
        try:
            if name == "class" and type(value) is int:
                value = str(value)  # by its number
            values[name] = read(value, COLUMNS[name])
        except (ValueError, OverflowError):
            shown = repr(value)
            shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
            return Problem(line, f"{name} must be {KIND_NAMES[COLUMNS[name]]}, not {shown}")
    return RawRow(line, values)


def _unknown(names: list[str]) -> str:
    if flags := _FLAGS_ALONE & set(names):
        return f"{', '.join(sorted(flags))} holds for all images: give --{min(flags)}, not a column"
    known = ", ".join(COLUMNS)
    return f"unknown column{'s' * (len(names) > 1)} {', '.join(map(repr, names))}; there are {known}"


def _column(name: str) -> str:
    return name.strip().lower().replace("-", "_")


def value_from_text(cell: str, kind: type) -> Any:
    """A value that is written as text.

    Raises:
        ValueError: it is of another kind.
    """
    if kind is bool:
        if cell.strip().lower() not in _WORDS:
            raise ValueError
        return _WORDS[cell.strip().lower()]
    return cell if kind is str else kind(cell)


def value_from_json(value: Any, kind: type) -> Any:
    """A value that JSON or TOML gave.

    Raises:
        ValueError: it is of another kind.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(pairs)
    if len(said) < len(pairs):
        raise ValueError("a name is there twice")
    return said
