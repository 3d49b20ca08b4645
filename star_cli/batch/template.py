"""File names from a template: legal on Linux, macOS and Windows, inside the folder, whatever the prompt.

Values come in as a-z, 0-9 and hyphens alone, so only the template's own text can be wrong, and it is checked once.
"""

from __future__ import annotations

import re
import string
from pathlib import PurePosixPath

from star_cli.errors import OptionError
from star_cli.generation.options import LARGEST_SEED
from star_cli.images import FORMATS, SUFFIXES
from star_cli.names import LONGEST_NAME

DEFAULT_TEMPLATE = "{index:05d}-{slug}-{seed}"
"""Where no template is given; the suffix follows the format."""
FIELDS: dict[str, int | str] = {
    "index": 1,
    "line": 1,
    "number": 1,
    "seed": 0,
    "res": 256,
    "slug": "slug",
    "model": "model",
    "hash": "0" * 12,
}
"""What may stand in braces, with an example: place among all images, line of the input, which image of its row, ..."""

JOURNAL_FILE = "star-batch.jsonl"
"""Beside the images; no folder inside may be called like it."""
_LONGEST: dict[str, int | str] = {
    **dict.fromkeys(("index", "line", "number"), 10**9),
    "seed": LARGEST_SEED,
    "res": 10**4,
    **dict.fromkeys(("slug", "model"), "x" * LONGEST_NAME),
    "hash": "0" * 12,
}
"""The longest values of `FIELDS`."""
_LONGEST_PART, _LONGEST_NAME = 200, 400
"""Bytes. File systems take 255 in a part; the rest is for what makes a name unique."""
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')
_NUMBER_SPEC, _TEXT_SPEC = re.compile(r"(0[1-9][0-9]?)?d?"), re.compile(r"(\.[1-9][0-9]{0,2})?")
"""Of Python's ways to write a value, those that cannot bring in other characters."""
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)$")
"""Names that Windows gives to devices, whatever the suffix."""


class NameTemplate:
    """Makes a file's name of a job's values.

    Args:
        text: such as "{index:05d}-{slug}-{seed}.png"; parts divided by / are folders.
        format: "png", "webp" or "jpeg"; follows the template's suffix when None.
        usual: the format where neither says.
    Raises:
        OptionError: an unknown field, a name that some system refuses, or one that leads out of the folder.
    """

    def __init__(
        self,
        text: str = DEFAULT_TEMPLATE,
        format: str | None = None,  # noqa: A002 - as the flag
        usual: str = "png",
    ):
        self.text = text
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise OptionError(f"--template {text}: {error}", "write it like {index:05d}-{slug}-{seed}.png") from error
        for _, field, spec, conversion in parts:
            if field is not None:
                _check_field(text, field, spec or "", conversion or "")
        ending = (parts[-1][0] if parts and parts[-1][1] is None else "").rpartition("/")[2]
        suffix = PurePosixPath(f"x{ending}").suffix
        named = FORMATS.get(suffix.lower())
        if format is not None and named is not None and named != format:
            raise OptionError(f"--template {text} names {named} files, but --format says {format}", "leave one out")
        self.format = format or named or usual
        self._ending = "" if named else SUFFIXES[self.format]
        check_name(self.name(FIELDS), "--template")
        _check_length(self.name(_LONGEST), "--template", "shorten it: {slug:.20} is the first 20 letters")

    def name(self, values: dict[str, int | str]) -> str:
        """The file's name, with / between folders."""
        return with_free_stems(self.text.format_map(values) + self._ending)


def check_name(name: str, what: str) -> None:
    """Is this file name, relative to the folder, one that every system takes, and inside the folder?

    Raises:
        OptionError: it is not; `what` begins the sentence.
    """
    if not name.strip():
        raise OptionError(f"{what} is empty", "name a file")
    if found := _FORBIDDEN.search(name):
        raise OptionError(f"{what} {name}: {found[0]!r} cannot stand in a file's name on every system", "leave it out")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise OptionError(f"{what} {name}: not UTF-8", "write it in UTF-8")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        raise OptionError(f"{what} {name} leads out of the folder", "name a file inside it")
    if any(not part or part == "." for part in parts):
        raise OptionError(f"{what} {name}: a part of it is empty", "name a file")
    if len(parts) > 1 and parts[0].lower() == JOURNAL_FILE:
        raise OptionError(f"{what} {name}: {parts[0]} is the journal, not a folder", "give another name")
    for part in parts:
        if part != part.strip() or part.endswith("."):
            raise OptionError(f"{what} {name}: a part begins or ends with a space or ends with a dot", "leave it out")
        if part.startswith("."):
            raise OptionError(f"{what} {name}: a part begins with a dot", "hidden files are for star itself")
    _check_length(name, what)


def with_free_stems(name: str) -> str:
    """The name, with an underscore where Windows would take a part of it for a device."""
    if not any(_RESERVED.match(part.partition(".")[0].rstrip()) for part in name.split("/")):
        return name
    return "/".join(_freed(part) for part in name.split("/"))


def numbered(name: str, count: int) -> str:
    """Another name of the same kind: `a.png`, `a-2.png`, `a-3.png`."""
    if count == 1:
        return name
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}-{count}{path.suffix}"))


def _check_field(text: str, field: str, spec: str, conversion: str) -> None:
    if field not in FIELDS or conversion:
        raise OptionError(
            f"--template {text}: unknown field {{{field}{'!' if conversion else ''}{conversion}}}",
            f"there are {', '.join(f'{{{name}}}' for name in FIELDS)}",
        )
    is_number = isinstance(FIELDS[field], int)
    if not (_NUMBER_SPEC if is_number else _TEXT_SPEC).fullmatch(spec):
        raise OptionError(
            f"--template {text}: {{{field}:{spec}}} cannot be read",
            "write {index:05d} for leading zeros, {slug:.20} for the first letters",
        )


def _freed(part: str) -> str:
    stem, dot, rest = part.partition(".")
    return f"{stem.rstrip()}_{dot}{rest}" if _RESERVED.match(stem.rstrip()) else part


def _check_length(name: str, what: str, hint: str = "shorten it") -> None:
    longest = max(len(part.encode()) for part in name.split("/"))
    if longest > _LONGEST_PART or len(name.encode()) > _LONGEST_NAME:
        raise OptionError(f"{what} {name[:60]}...: a name of {max(longest, len(name)):,} bytes is too long", hint)
