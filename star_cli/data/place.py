"""Can a folder be made, and written into? Asked before the work whose results it is for."""

from __future__ import annotations

from pathlib import Path

from star_cli.errors import OutputPathError
from star_cli.images import check_writable


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that is there.

    Raises:
        OutputPathError: a file is in the way, or no folder can be called so.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if _is_there(path))
        is_folder = there.is_dir()
    except (OSError, ValueError) as error:  # a name too long, a forbidden folder, a NUL inside the name
        raise OutputPathError(f"{folder}: {getattr(error, 'strerror', None) or error}") from error
    if not is_folder:
        raise OutputPathError(f"{there} is not a folder", "give another folder, or one that is not there yet")
    return there


def check_new_folder(folder: Path) -> None:
    """Could a folder for this and nothing else be written? Nothing of the user's is replaced or mixed in.

    Raises:
        OutputPathError: a file is in the way, it cannot be written into, or it holds anything but hidden files.
    """
    there = nearest_folder(folder)
    check_writable(there)
    if there == folder and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise OutputPathError(f"{folder} holds files already", "give an empty folder, or one that is not there yet")


def _is_there(path: Path) -> bool:
    """A link that leads nowhere is."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
