"""Where things stand in a scene of icons.

Lengths are shares of the picture's side; y runs downwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from star_cli.data.icons.backgrounds import GROUNDED
from star_cli.data.icons.catalogue import IconObject

DEFAULT_GROUNDS = ("white", "light blue")
"""What a thing stands on when nothing is said: with these, nothing is held out."""

Relation = Literal["none", "row", "beside", "above", "in front"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)
Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = get_args(Size)
PLACES = {
    "centre": (0.5, 0.5),
    "left": (0.25, 0.5),
    "right": (0.75, 0.5),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.75),
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
}
# Things have few sizes, and places that are multiples of a sixteenth of the picture apart: the token maps of a thing at
# one are those at another, moved by whole tokens.
SIDES: dict[Size, float] = {"small": 0.44, "medium": 0.8, "large": 0.98}
_FLOOR = 0.9  # where a thing alone stands on the ground


@dataclass(frozen=True)
class Item:
    """One icon in a scene."""

    key: str
    """Of the catalogue's object."""
    x: float
    y: float
    """Its centre."""
    side: float
    """Side of the square that the icon fills."""
    size: Size = "medium"
    """How large it is for its place; medium goes unsaid."""
    is_flipped: bool = False
    angle: int = 0
    """Degrees, anticlockwise."""


@dataclass(frozen=True)
class IconScene:
    """A background and one to four things."""

    background: str
    variant: int
    """Which drawing of the background."""
    items: tuple[Item, ...]
    """From the left or the top, drawn in this order; "in front": what is behind comes first."""
    relation: Relation = "none"
    """How two stand to each other; "row" for three of one or of several kinds, or a counted number."""
    place: str = "centre"
    """A name of `PLACES`, of a small thing alone."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The kinds of things, each once, in order."""
        return tuple(dict.fromkeys(item.key for item in self.items))

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {key: sum(item.key == key for item in self.items) for key in self.keys}

    @property
    def pairs(self) -> Iterator[tuple[str, str]]:
        """What may be held out: each thing with the ground, then each two kinds of things."""
        if self.background not in DEFAULT_GROUNDS:
            yield from ((key, f"on {self.background}") for key in self.keys)
        yield from combinations(self.keys, 2)


def put(thing: IconObject, ground: str, x: float, y: float, side: float, size: Size = "medium") -> Item:
    """A thing at a place; on a landscape with a ground, what stands on the ground stands on it."""
    floor = y + 0.5 * _FLOOR_OF * side
    if ground in GROUNDED and thing.stance != "sky":
        y = floor - (thing.look.bottom - 0.5) * side
    return Item(thing.key, x, round(y, 4), side, size)


_FLOOR_OF = 2 * (_FLOOR - 0.5) / SIDES["medium"]  # where the floor is, in half sides below the centre


_Spots = tuple[tuple[float, float], ...]
_TWO: _Spots = ((0.25, 0.5), (0.75, 0.5))
_ROW: _Spots = ((0.1875, 0.5), (0.5, 0.5), (0.8125, 0.5))  # five sixteenths apart
_TRIANGLE: _Spots = ((0.5, 0.25), (0.25, 0.75), (0.75, 0.75))
_SQUARE: _Spots = ((0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75))
_ROW_SIDE = 0.31


def together(things: list[IconObject], ground: str) -> list[Item]:
    """Two or three things from left to right, but three of a kind in a triangle where there is no ground to stand on.
    Four are always of a kind and never on the ground: they make a square.
    """
    if len(things) == 4 or (len(set(things)) == 1 and len(things) == 3 and ground not in GROUNDED):
        spots = _SQUARE if len(things) == 4 else _TRIANGLE
        return [put(thing, ground, x, y, SIDES["small"]) for thing, (x, y) in zip(things, spots, strict=True)]
    side, spots = (SIDES["small"], _TWO) if len(things) == 2 else (_ROW_SIDE, _ROW)
    lower = 0.125 if ground in GROUNDED else 0.0  # a row stands nearer than the horizon
    return [
        put(thing, ground, x, y + (lower if thing.stance != "sky" else 0.0), side)
        for thing, (x, y) in zip(things, spots, strict=True)
    ]


def arrange(first: IconObject, second: IconObject, relation: Relation, ground: str) -> list[Item]:
    """Two things: left and right, top and bottom, or behind and in front."""
    small = SIDES["small"]
    if relation == "beside":
        return together([first, second], ground)
    if relation == "above":
        return [Item(first.key, 0.5, 0.25, small), put(second, ground, 0.5, 0.75, small)]
    return [put(first, ground, 0.5, 0.5, SIDES["medium"]), put(second, "", 0.5, 0.75, small)]
