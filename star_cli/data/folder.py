"""A folder of pictures, with captions in text files beside them or in `metadata.jsonl`."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path
from typing import Any

from star_cli.data.caption_files import captions_in_record, captions_in_text, lines, record_of
from star_cli.data.stored import StoredImages
from star_cli.data.transforms import SUFFIXES
from star_cli.errors import BadImageError, DataError

METADATA = "metadata.jsonl"
SIDECAR = ".txt"


class ImageFolder(StoredImages):
    """Every picture below a folder, in the order of their paths.

    A picture's captions are those that a `metadata.jsonl` gives it (of any folder of the tree; `file_name` counts from
    where it lies), else the lines of the text file of its name (`a.jpg`: `a.txt`). Several lines of `metadata.jsonl`
    for one picture add up. Files and folders whose names begin with a dot are passed over.

    Args:
        root: the folder.
        caption_column: the field of `metadata.jsonl` that holds captions; None: see `CAPTION_FIELDS`.
    Raises:
        DataError: no such folder, no picture in it, or a line of `metadata.jsonl` that cannot be used.
    """

    def __init__(self, root: Path | str, caption_column: str | None = None):
        self.root = Path(root)
        found = _walk(self.root)
        self._told: dict[str, tuple[str, ...]] = {}
        for path in found.metadata:
            _add_metadata(self._told, self.root, path, caption_column)
        self._sidecars = found.sidecars
        # A picture that metadata names and that is not there is a bad file, told when it is read.
        self._paths = sorted(set(found.pictures) | self._told.keys())
        if not self._paths:
            raise DataError(f"{self.root}: no picture in this folder or below it", f"known: {_known_suffixes()}")

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._paths)

    def name(self, index: int) -> str:
        """Path from the folder."""
        return self._paths[index]

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a picture.

        Raises:
            BadImageError: its text file cannot be read.
        """
        path = self._paths[index]
        if told := self._told.get(path):
            return told
        sidecar = self._sidecars.get(posixpath.splitext(path)[0])
        if sidecar is None:
            return ()
        try:
            return captions_in_text((self.root / sidecar).read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadImageError(f"{path}: its captions in {sidecar}: {reason}") from error

    def _open(self, index: int) -> Path:
        return self.root / self._paths[index]

    def _identity(self, index: int) -> tuple[object, ...]:
        path = self._paths[index]
        sidecar = self._sidecars.get(posixpath.splitext(path)[0])
        captions = self._told.get(path) or (_bytes_of(self.root / sidecar) if sidecar else ())
        return os.fsencode(path), _size_of(self.root / path), captions


class _Found:
    """What a tree holds, as paths from its root, parted by slashes."""

    def __init__(self) -> None:
        self.pictures: list[str] = []
        self.metadata: list[str] = []
        self.sidecars: dict[str, str] = {}
        """Path without suffix: path of the text file."""


def _walk(root: Path) -> _Found:
    """Go through a tree; a folder that links lead to again, a loop above all, is entered once."""
    found, entered, waiting = _Found(), set[tuple[int, int]](), [""]
    while waiting:
        folder = waiting.pop()
        try:
            status = (root / folder).stat()
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{root / folder}: {error.strerror or error}") from error
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        deeper = []
        for entry in entries:
            path = posixpath.join(folder, entry.name)
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                deeper.append(path)
            else:
                _sort_in(found, path)
        waiting += reversed(deeper)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _sort_in(found: _Found, path: str) -> None:
    stem, suffix = posixpath.splitext(path)
    if suffix.lower() in SUFFIXES:
        found.pictures.append(path)
    elif suffix.lower() == SIDECAR:
        found.sidecars[stem] = path
    elif posixpath.basename(path) == METADATA:
        found.metadata.append(path)


def _add_metadata(told: dict[str, tuple[str, ...]], root: Path, path: str, caption_column: str | None) -> None:
    """Add the captions that one metadata file tells to those already told."""
    try:
        rows = lines((root / path).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{root / path}: {getattr(error, 'strerror', None) or error}") from error
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            record = record_of(row)
            picture = posixpath.join(posixpath.dirname(path), _file_name(record))
            told[picture] = told.get(picture, ()) + captions_in_record(record, caption_column)
        except ValueError as error:
            raise DataError(
                f"{root / path}, line {number}: {error}",
                'a line is like {"file_name": "a.jpg", "text": "a red circle"}',
            ) from error


def _file_name(record: dict[str, Any]) -> str:
    value = record.get("file_name")
    if not isinstance(value, str) or not value:
        raise ValueError("file_name is missing")
    if not _is_encodable(value):
        raise ValueError(f"no file can be called {value!r}")
    name = posixpath.normpath(value)
    if posixpath.isabs(name) or name.split("/")[0] in ("..", "."):
        raise ValueError(f"file_name {value!r} leads out of the folder")
    return name


def _is_encodable(name: str) -> bool:
    """May a path be called so? JSON can spell characters that none holds."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _known_suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))
