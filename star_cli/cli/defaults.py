"""The user's own defaults: environment variables, then a config file. A flag always wins, and so does a recipe."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from star_cli.asked import check_sampling
from star_cli.batch.rows import COLUMNS, KIND_NAMES, value_from_json, value_from_text
from star_cli.cli import options
from star_cli.errors import OptionError
from star_cli.paths import expand_home

KEYS: dict[str, type] = {
    "model": str,
    **{
        name: COLUMNS[name]
        for name in ("res", "guidance", "top_k", "top_p", "temperature", "smooth", "speed", "format")
    },
    "device": str,
    "dtype": str,
}
"""What may be set, and of which kind it is; the names of flags."""
_CHOICES = {"format": options.Format, "device": options.Device, "dtype": options.Dtype, "speed": options.Speed}


@dataclass(frozen=True)
class Default:
    """A value and where it was found."""

    name: str
    value: Any
    source: str
    """The variable's name, or the file's path."""


def config_path() -> Path:
    """Of the config file: `$STAR_CONFIG`, else `star/config.toml` in `$XDG_CONFIG_HOME` or `~/.config`."""
    if named := os.environ.get("STAR_CONFIG"):
        return expand_home(named)
    return expand_home(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "star" / "config.toml"


def user_defaults() -> dict[str, Any]:
    """Values by the names of flags.

    Raises:
        OptionError: a variable or the file says something that cannot be used.
    """
    return {default.name: default.value for default in found_defaults()}


def found_defaults() -> list[Default]:
    """Every value that is set, with its source; what the environment says hides what the file says.

    Raises:
        OptionError: a variable or the file says something that cannot be used.
    """
    path = config_path()
    found = {name: Default(name, value, str(path)) for name, value in _from_file(path).items()}
    for name, kind in KEYS.items():
        variable = variable_of(name)
        if text := os.environ.get(variable):
            found[name] = Default(name, _checked(name, text, variable, value_from_text, kind), variable)
    return [found[name] for name in KEYS if name in found]


def variable_of(name: str) -> str:
    """The environment variable of a flag."""
    return f"STAR_{name.upper()}"


def _from_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        said = tomllib.loads(text.replace("\r\n", "\n"))
    except FileNotFoundError:
        if os.environ.get("STAR_CONFIG"):
            raise OptionError(f"STAR_CONFIG: there is no file {path}", "make it, or unset the variable") from None
        return {}
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise OptionError(f"{path}: {error}", 'write lines like: model = "star-shapes"') from error
    said = {name.replace("-", "_"): value for name, value in said.items()}
    if unknown := [name for name in said if name not in KEYS]:
        raise OptionError(f"{path}: unknown {', '.join(unknown)}", f"there are {', '.join(KEYS)}")
    return {name: _checked(name, value, f"{path}: {name}", value_from_json, KEYS[name]) for name, value in said.items()}


def _checked(name: str, value: Any, where: str, read: Any, kind: type) -> Any:
    try:
        value = read(value, kind)
    except (ValueError, OverflowError):
        raise OptionError(f"{where} must be {KIND_NAMES[kind]}, not {value!r}", "see `star config`") from None
    choices = get_args(_CHOICES[name]) if name in _CHOICES else ()
    if choices and value not in choices:
        raise OptionError(f"{where} must be {', '.join(choices)}, not {value}", "see `star config`")
    try:
        check_sampling({name: value})
    except OptionError as error:
        raise OptionError(f"{where}: {error}", error.hint) from error
    return value
