"""Words of captions and prompts: which of a prompt's did a model ever read?"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_WORD = re.compile(r"[^\W_][\w'-]*")
_GAP = re.compile(r"\{\w*\}")


def split_words(texts: Iterable[str]) -> set[str]:
    """The words of some texts in small letters, without the gaps of forms ("{a}")."""
    return {word for text in texts for word in _words(_GAP.sub(" ", text))}


def unknown_words(text: str, known: Collection[str]) -> list[str]:
    """The words of a text that are not among the known ones, each once, in their order.

    A word that is known in parts ("apple-tree"), or but for an ending after an apostrophe ("cat's"), is known.
    """
    return [word for word in dict.fromkeys(_words(text)) if not _is_known(word, known)]


def _words(text: str) -> list[str]:
    return [word.rstrip("'-") for word in _WORD.findall(text.lower().replace("\u2019", "'"))]


def _is_known(word: str, known: Collection[str]) -> bool:
    return word in known or all(part.partition("'")[0] in known for part in word.split("-") if part)
