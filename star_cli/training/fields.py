"""Fields of a recipe as text: some changed from the command line, all of them written out, each one explained.

Values are those of TOML everywhere.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import pairwise
from typing import Any

from star_cli.errors import OptionError
from star_cli.models.config import Config

WIDTH = 116
"""Characters of a line of explanation."""


def with_changes(values: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Nested settings with some of them changed.

    Args:
        values: as read from TOML.
        changes: "star.loop.steps=100", "star.portions.0.batch_size=4", "name=mine": a path of keys (or positions in a
            list) and a TOML value; what is no TOML value is taken as a string.
    Raises:
        OptionError: no "=", or a path that leads through something that has no parts.
    """
    changed = deepcopy(dict(values))
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals or not path.strip():
            raise OptionError(f"--set {change} is no KEY=VALUE", "for example --set star.loop.steps=1000")
        _put(changed, path.strip(), _value(text.strip()))
    return changed


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = values
    for key in parents:
        if isinstance(place, dict):
            place = place.setdefault(key, {})
        elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
            place = place[int(key)]
        else:
            raise OptionError(f"--set {path}: there is no {key} here")
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    else:
        raise OptionError(f"--set {path}: there is no {last} here")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# -- written out ------------------------------------------------------------------------------------------------------


def to_toml(values: Mapping[str, Any], kinds: Mapping[str, type[Config]] | None = None) -> str:
    """Nested settings as TOML, which reads back as the same settings.

    Args:
        values: plain data; None stands for a field that is left out.
        kinds: the config class of a section, "star.loop" -> LoopConfig: its fields' explanations become comments.
    """
    return "\n".join(_section(values, (), kinds or {})) + "\n"


def _section(values: Mapping[str, Any], path: tuple[str, ...], kinds: Mapping[str, type[Config]]) -> Iterator[str]:
    name = ".".join(path)
    explained = explanations(kinds[name]) if name in kinds else {}  # type: ignore[arg-type]  # a class is hashable
    for key, value in values.items():
        if value is not None and not _has_sections(value):
            yield from textwrap.wrap(explained.get(key, ""), WIDTH, initial_indent="# ", subsequent_indent="# ")
            yield f"{_key(key)} = {_text(value)}"
    for key, value in values.items():
        inner = (*path, key)
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Mapping):
                heading = ".".join(map(_key, inner))
                yield ""
                yield f"[[{heading}]]" if isinstance(value, list | tuple) else f"[{heading}]"
                yield from _section(part, inner, kinds)


def _has_sections(value: Any) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return len(parts) > 0 and all(isinstance(part, Mapping) for part in parts)


def _key(key: object) -> str:
    text = str(key)
    is_bare = text.isascii() and text.replace("_", "").replace("-", "").isalnum()
    return text if is_bare else _text(text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(part) for part in value)}]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


@cache
def explanations(kind: type[Config]) -> dict[str, str]:
    """What is said below each field of a config class: field -> one paragraph."""
    (body,) = (
        node.body for node in ast.parse(textwrap.dedent(inspect.getsource(kind))).body if isinstance(node, ast.ClassDef)
    )
    said = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            said[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return said
