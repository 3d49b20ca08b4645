"""A part of a list of prompts that stands for the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def thinned(items: Sequence[Item], limit: int | None) -> list[Item]:
    """So many of a list, evenly spread from the first to the last; all where there are no more, or no limit is set."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]
