"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path


def expand_home(path: str | Path) -> Path:
    """`~` and `~NAME` as home folders; a name that nobody has stays, and is then a path that is not there."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
