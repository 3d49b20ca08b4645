"""Captions as people store them: text with a caption a line, JSON records with a field for it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

CAPTION_FIELDS = ("text", "caption", "captions")
"""Where captions are looked for in a record, in this order."""

_LINE_END = re.compile(r"\r\n|\n|\r")  # str.splitlines would also break at characters that stand inside sentences
_BYTE_ORDERS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode(data: bytes) -> str:
    """Text of UTF-8, with or without a byte order mark, or of UTF-16 with one.

    Raises:
        ValueError: the bytes are neither.
    """
    if data.startswith(_BYTE_ORDERS):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error


def lines(data: bytes) -> list[str]:
    """The lines of a text, without their ends; empty ones included.

    Raises:
        ValueError: see `decode`.
    """
    return _LINE_END.split(decode(data))


def captions_in_text(data: bytes) -> tuple[str, ...]:
    """One caption a line; empty lines are none.

    Raises:
        ValueError: see `decode`.
    """
    return _non_empty(lines(data))


def record_of(data: bytes | str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: not JSON, or something else than an object.
    """
    try:
        record = json.loads(decode(data) if isinstance(data, bytes) else data)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON that can be read: nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def captions_in_record(record: Mapping[str, Any], field: str | None = None) -> tuple[str, ...]:
    """The captions of a record.

    Args:
        record: a JSON object.
        field: where they are; None: the first of `CAPTION_FIELDS` that is there.
    Returns:
        None where the field is missing or null.
    Raises:
        ValueError: the field holds something else than a string or a list of strings.
    """
    found = field or next((name for name in CAPTION_FIELDS if name in record), None)
    return captions_in_value(record.get(found), found) if found is not None else ()


def captions_in_value(value: Any, field: str) -> tuple[str, ...]:
    """A string, a list of strings, or null as captions.

    Raises:
        ValueError: something else.
    """
    values = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else value
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise ValueError(f"{field} must be a string or a list of strings, not {_shortened(value)}")
    return _non_empty(values)


def _non_empty(texts: list[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
