"""Scenes in English: many ways of saying the same picture, none of which fits another scene.

What a caption leaves out has a fixed meaning: medium size, in the centre, white background (grey behind something
white), and two or three things without a relation stand in a row from left to right.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from star_cli.data.scenes import Scene, Thing

SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("",), "large": ("large", "big", "huge")}
_PLACE_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "on the top"),
    "bottom": ("at the bottom", "on the bottom"),
    "centre": ("in the centre", "in the center", "in the middle"),
}
_CORNER_WORDS = ("in the {} corner", "at the {}", "in the {}", "at the {} corner")
_OPENERS = ("a picture of", "an image of", "a drawing of", "draw", "show", "a simple drawing of", "paint")

# {a} stands left of, or above, {b}
_PAIR_IN_ROW = (
    "{a} to the left of {b}",
    "{a} left of {b}",
    "{a} on the left of {b}",
    "{b} to the right of {a}",
    "{b} right of {a}",
    "{b} on the right of {a}",
    "{b}, right of {a}",
    "{a}, left of {b}",
    "{a} on the left and {b} on the right",
    "{b} on the right and {a} on the left",
    "{a} on the left, {b} on the right",
    "{a} with {b} to its right",
    "{b} with {a} to its left",
    "{a} next to {b} on its right",
    "{a} and {b}",
    "{a} and {b} side by side",
)
_PAIR_IN_COLUMN = (
    "{a} above {b}",
    "{a} above {b}",
    "{a} over {b}",
    "{a} on top of {b}",
    "{b} below {a}",
    "{b} below {a}",
    "{b} under {a}",
    "{b} beneath {a}",
    "{b} underneath {a}",
    "{a}, above {b}",
    "{b}, below {a}",
    "{a} at the top and {b} at the bottom",
    "{b} at the bottom and {a} at the top",
    "{a} at the top, {b} at the bottom",
    "{a} with {b} below it",
    "{b} with {a} above it",
)
_THREE_IN_ROW = (
    "{a}, {b} and {c}",
    "{a}, {b} and {c} in a row",
    "{a}, {b} and {c} from left to right",
    "from left to right {a}, {b} and {c}",
    "a row of {a}, {b} and {c}",
    "{a} on the left, {b} in the middle and {c} on the right",
    "{c} on the right, {b} in the middle and {a} on the left",
)
_THREE_IN_COLUMN = (
    "{a}, {b} and {c} in a column",
    "{a}, {b} and {c} from top to bottom",
    "from top to bottom {a}, {b} and {c}",
    "a column of {a}, {b} and {c}",
    "{a} at the top, {b} in the middle and {c} at the bottom",
    "{c} at the bottom, {b} in the middle and {a} at the top",
    "{a} above {b} above {c}",
)

_BEHIND = (
    "{body} on {an_x} background",
    "{body} on {an_x} background",
    "{body} on {an_x} background",
    "{body} on {x}",
    "{body}, {x} background",
    "{body} against {an_x} background",
    "{body} with {an_x} background",
    "{body} on {an_x} backdrop",
    "{body}, {x} backdrop",
)
_IN_FRONT = (
    "{x} background with {body}",
    "{an_x} background with {body}",
    "on {an_x} background, {body}",
    "{x} background, {body}",
    "{an_x} backdrop with {body}",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the many English sentences for a scene; fresh numbers from `rng` give fresh words."""
    names_background = scene.background != scene.default_background or rng.random() < 0.5
    is_behind = rng.random() < 0.75
    opener = rng.choice(_OPENERS) + " " if rng.random() < 0.3 and (is_behind or not names_background) else ""
    body = opener + _body(scene, rng, may_lead=not opener and is_behind)
    sentence = _on_background(body, scene.background, is_behind, rng) if names_background else body
    if rng.random() < 0.1:
        sentence = sentence[0].upper() + sentence[1:]
    return sentence + "." if rng.random() < 0.1 else sentence


def _on_background(body: str, background: str, is_behind: bool, rng: random.Random) -> str:
    colour = rng.choice(("grey", "gray")) if background == "grey" else background
    form = rng.choice(_BEHIND if is_behind else _IN_FRONT)
    return form.format(body=body, x=colour, an_x=_with_article(colour))


def _noun(thing: Thing, rng: random.Random, with_article: bool) -> str:
    names = SHAPE_WORDS[thing.shape]
    shape = names[0] if rng.random() < 0.85 else rng.choice(names)
    words = " ".join(filter(None, (rng.choice(SIZE_WORDS[thing.size]), thing.colour, shape)))
    return _with_article(words) if with_article else words


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _body(scene: Scene, rng: random.Random, may_lead: bool) -> str:
    """The things and where they stand; `may_lead` lets the place of a thing come first."""
    with_articles = rng.random() < 0.85
    nouns = [_noun(thing, rng, with_articles) for thing in scene.things]
    if len(nouns) == 1:
        where = _where(scene.place, rng)
        return f"{where}, {nouns[0]}" if where and may_lead and rng.random() < 0.15 else f"{nouns[0]} {where}".strip()
    in_row, in_column = (_PAIR_IN_ROW, _PAIR_IN_COLUMN) if len(nouns) == 2 else (_THREE_IN_ROW, _THREE_IN_COLUMN)
    forms: Sequence[str] = in_column if scene.is_column else in_row
    return rng.choice(forms).format(**dict(zip("abc", nouns, strict=False)))


def _where(place: str, rng: random.Random) -> str:
    if place == "centre" and rng.random() < 0.8:
        return ""
    if place in _PLACE_WORDS:
        return rng.choice(_PLACE_WORDS[place])
    corner = place.replace("top", "upper").replace("bottom", "lower") if rng.random() < 0.25 else place
    return rng.choice(_CORNER_WORDS).format(corner)
