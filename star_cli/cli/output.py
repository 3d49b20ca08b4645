"""Where pictures go: a file, a folder or standard output; whatever can be wrong is found before anything is drawn."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from star_cli.cli import console
from star_cli.errors import OutputError, OutputPathError
from star_cli.images import FORMATS, SUFFIXES, check_folder, check_target, check_writable, format_of
from star_cli.names import name_of, subject_of

if TYPE_CHECKING:
    from star_cli.generated import GeneratedImage

USE_FORCE = "use --force to overwrite it, or another name"
"""Hint for a file that is there."""


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
            path = self.folder / f"{stem}{'' if count == 1 else f'-{count}'}{SUFFIXES[self.format]}"
            count += 1
            if path in self._taken or (os.path.lexists(path) and not self.force):
                continue
            self._taken.add(path)
            try:
                return image.save(path, self.format, overwrite=self.force)
            except OutputPathError:
                if not os.path.lexists(path):  # else another program just took the name
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


def choose_destination(
    out: str | None,
    format: str | None,  # noqa: A002
    pictures: int,
    force: bool,
    usual: str = "png",
) -> Destination:
    """Where the pictures go, checked: parent folder, permission, suffix, number of pictures, what is already there.

    `usual` is the format where neither `format` nor a file's name says.

    Raises:
        OutputPathError: they cannot go there.
    """
    if out == "-":
        return _to_stdout(format or usual, pictures)
    if out is None:
        return _to_folder(Path(), format or usual, force)
    if not out.strip():
        raise OutputPathError("--out is empty", "give a file, a folder or -")
    path = Path(out)
    if out.endswith(("/", "\\") if sys.platform == "win32" else "/"):
        return _to_folder(path, format or usual, force)
    if _is_folder(path) and path.suffix.lower() not in FORMATS:
        return _to_folder(path, format or usual, force)
    return _to_file(path, format, pictures, force)


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
    check_folder(folder, "give another name, or the file without the slash")
    check_writable(folder if folder.is_dir() else folder.parent)
    return ToFolder(folder, format, force)


def _to_file(path: Path, format: str | None, pictures: int, force: bool) -> ToFile:  # noqa: A002
    named = format if format is not None and not path.suffix else format_of(path)
    if format not in (None, named):
        raise OutputPathError(
            f"{path} is to be a {named} file, but --format says {format}", f"use {SUFFIXES[str(format)]}"
        )
    check_target(
        path,
        overwrite=force,
        if_folder=f"use --out {path}/ to draw into it",
        if_special="use --out - to write to standard output",
        if_exists=USE_FORCE,
    )
    if pictures > 1:
        raise OutputPathError(
            f"{path} takes one picture, not {pictures}", f"give a folder: --out {path.with_suffix('')}/"
        )
    check_writable(Path(os.path.realpath(path)).parent)
    return ToFile(path, named, force)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise OutputPathError(f"{path}: {error.strerror or error}") from error
