"""English for the names of things: a or an, one or many."""

from __future__ import annotations

import re

_IRREGULAR = {
    "bison": "bison",
    "calf": "calves",
    "dice": "dice",
    "deer": "deer",
    "die": "dice",
    "elk": "elk",
    "ewe": "ewes",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "grand prix": "grands prix",
    "knife": "knives",
    "leaf": "leaves",
    "sheaf": "sheaves",
    "lens": "lenses",
    "loaf": "loaves",
    "louse": "lice",
    "moose": "moose",
    "mouse": "mice",
    "ox": "oxen",
    "quiz": "quizzes",
    "salmon": "salmon",
    "scarf": "scarves",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "spacecraft": "spacecraft",
    "aircraft": "aircraft",
    "squid": "squid",
    "tooth": "teeth",
    "wolf": "wolves",
    "swordfish": "swordfish",
    "pufferfish": "pufferfish",
    "jellyfish": "jellyfish",
    "blowfish": "blowfish",
    "starfish": "starfish",
}
_OES = {"tomato", "potato", "volcano", "mango", "tornado", "mosquito", "buffalo", "torpedo"}
_MANS = {"talisman", "human", "german", "shaman", "caiman"}
_HEAD_ENDS = re.compile(r" (?:of|with|behind|in|on|and|from|spouting) ")  # "slice | of pizza": the head comes before
_SOUNDS_LIKE_YOU = re.compile(r"(?:uni(?!n)|eu|ufo|use|uku|one)", re.IGNORECASE)
_SOUNDS_LIKE_VOWEL = re.compile(r"(?:hour|honest|heir|x-ray|x\b|suv\b|mri\b)", re.IGNORECASE)


def with_article(words: str) -> str:
    """The words after "a" or "an", whichever their sound asks for."""
    is_vowel = words[0].lower() in "aeiou" and not _SOUNDS_LIKE_YOU.match(words)
    return f"{'an' if is_vowel or _SOUNDS_LIKE_VOWEL.match(words) else 'a'} {words}"


def plural(name: str) -> str:
    """Many of what the name says: the head of a phrase changes, not what follows it ("slices of pizza")."""
    head = _HEAD_ENDS.split(name, maxsplit=1)[0]
    before, space, last = head.rpartition(" ")
    return before + space + _plural_word(last) + name[len(head) :]


def _plural_word(word: str) -> str:
    for stem, many in _IRREGULAR.items():
        if word == stem or word.endswith("-" + stem):
            return word[: len(word) - len(stem)] + many
    if word.endswith("man") and word not in _MANS:
        return word[:-3] + "men"
    if re.search(r"(?:s|x|z|ch|sh)$", word) or word in _OES:
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"
