"""Where pictures go: a file, a folder or standard output; whatever can be wrong is found before anything is drawn."""

from __future__ import annotations

import re
import sys
import tempfile
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from star_cli.cli import console
from star_cli.errors import OutputError, OutputPathError
from star_cli.images import FORMATS, check_target, format_of

if TYPE_CHECKING:
    from star_cli.pipeline import GeneratedImage

_SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
_LONGEST_NAME = 60


class Destination(Protocol):
    """Takes pictures."""

    format: str

    def save(self, image: GeneratedImage) -> Path | None:
        """Write a picture; its path, or None when it went to standard output."""


@dataclass
class ToFile:
    """One picture under the name that was given."""

    path: Path
    format: str
    force: bool

    def save(self, image: GeneratedImage) -> Path:
        """Write the picture."""
        return image.save(self.path, self.format, overwrite=self.force)


@dataclass
class ToFolder:
    """Any number of pictures, named after prompt and seed."""

    folder: Path
    format: str
    force: bool
    _taken: set[Path] = field(default_factory=set)

    def save(self, image: GeneratedImage) -> Path:
        """Write the picture under the first name that is free; with `force`, that this run has not used."""
        self._make()
        stem = f"{name_of(subject_of(image.recipe))}-{image.recipe['seed']}"
        count = 1
        while True:
            path = self.folder / f"{stem}{'' if count == 1 else f'-{count}'}{_SUFFIXES[self.format]}"
            count += 1
            if path in self._taken or (path.exists() and not self.force):
                continue
            self._taken.add(path)
            try:
                return image.save(path, self.format, overwrite=self.force)
            except OutputPathError:
                if not path.exists():  # else another program just took the name
                    raise

    def _make(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make folder {self.folder}: {error.strerror or error}") from error


@dataclass
class ToStdout:
    """One picture to standard output, nothing else there."""

    format: str

    def save(self, image: GeneratedImage) -> None:
        """Write the picture."""
        console.print_picture(image.encode(self.format))


def choose_destination(out: str | None, format: str | None, pictures: int, force: bool) -> Destination:  # noqa: A002
    """Where the pictures go, checked: parent folder, permission, suffix, number of pictures, what is already there.

    Raises:
        OutputPathError: they cannot go there.
    """
    if out == "-":
        return _to_stdout(format or "png", pictures)
    if out is None:
        return _to_folder(Path(), format or "png", force)
    if not out.strip():
        raise OutputPathError("--out is empty", "give a file, a folder or -")
    path = Path(out)
    if out.endswith(("/", "\\") if sys.platform == "win32" else "/"):
        return _to_folder(path, format or "png", force)
    if _is_folder(path) and path.suffix.lower() not in FORMATS:
        return _to_folder(path, format or "png", force)
    return _to_file(path, format, pictures, force)


def subject_of(recipe: Mapping[str, Any]) -> str:
    """What a picture shows, in words."""
    return str(recipe["prompt"]) if "prompt" in recipe else f"class {recipe['class']}"


def name_of(prompt: str) -> str:
    """A file name's beginning, made of a-z, 0-9 and hyphens; "picture" for a prompt without any."""
    plain = unicodedata.normalize("NFKD", prompt[: 10 * _LONGEST_NAME]).encode("ascii", errors="ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME + 1].rpartition("-")[0] or name[:_LONGEST_NAME]
    return name or "picture"


def _to_stdout(format: str, pictures: int) -> ToStdout:  # noqa: A002
    if pictures > 1:
        raise OutputPathError(f"--out - takes one picture, not {pictures}", "give a folder: --out pictures/")
    if sys.stdout is None:
        raise OutputPathError("standard output is closed", "give a file: --out picture.png")
    if sys.stdout.isatty():
        raise OutputPathError(
            "a terminal cannot show a picture's bytes", "send them on: star generate ... --out - > x.png"
        )
    return ToStdout(format)


def _to_folder(folder: Path, format: str, force: bool) -> ToFolder:  # noqa: A002
    if _is_folder(folder):
        _check_writable(folder)
    elif folder.exists():
        raise OutputPathError(f"{folder} is a file, not a folder", "give another name, or the file without the slash")
    elif not _is_folder(folder.parent):
        raise OutputPathError(f"{folder}: there is no folder {folder.parent}", "make the folder first")
    else:
        _check_writable(folder.parent)
    return ToFolder(folder, format, force)


def _to_file(path: Path, format: str | None, pictures: int, force: bool) -> ToFile:  # noqa: A002
    named = format if format is not None and not path.suffix else format_of(path)
    if format not in (None, named):
        raise OutputPathError(
            f"{path} is to be a {named} file, but --format says {format}", f"use {_SUFFIXES[str(format)]}"
        )
    check_target(path, overwrite=force)
    if pictures > 1:
        raise OutputPathError(
            f"{path} takes one picture, not {pictures}", f"give a folder: --out {path.with_suffix('')}/"
        )
    _check_writable(path.parent)
    return ToFile(path, named, force)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise OutputPathError(f"{path}: {error.strerror or error}") from error


def _check_writable(folder: Path) -> None:
    """Try it: rights, read-only disks and odd file systems all answer, and root is told the truth, too."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputPathError(
            f"cannot write into {folder}: {error.strerror or error}", "use a folder that you may write to"
        ) from error
