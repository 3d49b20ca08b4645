"""Scenes of coloured shapes, drawn from a seed: what star-shapes learns to paint.

Everything that varies in a scene is said by its caption or fixed by a default (medium size, centre, white background),
so a caption decides its picture. Lengths are shares of the picture's side; y runs downwards.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross")
COLOURS = {
    "red": (222, 36, 40),
    "orange": (247, 134, 24),
    "yellow": (252, 216, 40),
    "green": (34, 158, 72),
    "blue": (36, 92, 222),
    "purple": (128, 52, 176),
    "pink": (250, 150, 196),
    "white": (255, 255, 255),
    "black": (16, 16, 16),
}
BACKGROUNDS = COLOURS | {"grey": (184, 184, 184)}
SIZES = {"small": 0.11, "medium": 0.15, "large": 0.215}  # half the side of the box a thing is drawn in

LOW, MIDDLE, HIGH = 0.25, 0.5, 0.75
ENDS_OF_THREE = (0.17, 0.5, 0.83)
PLACES = {
    "centre": (MIDDLE, MIDDLE),
    "left": (LOW, MIDDLE),
    "right": (HIGH, MIDDLE),
    "top": (MIDDLE, LOW),
    "bottom": (MIDDLE, HIGH),
    "top left": (LOW, LOW),
    "top right": (HIGH, LOW),
    "bottom left": (LOW, HIGH),
    "bottom right": (HIGH, HIGH),
}

HELD_OUT_SEED = 1_000_000_000  # seeds from here on give scenes that no seed below gives
_HELD_OUT_SHARE = 16  # one scene in sixteen is held out


@dataclass(frozen=True)
class Thing:
    """One coloured shape: `size` is a name of `SIZES`, `x` and `y` its centre, 0..1."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Half the side of the box it fills, as a share of the picture's side."""
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """A background and one to three things: alone, in a row (left to right) or in a column (top to bottom)."""

    background: str
    things: tuple[Thing, ...]

    @property
    def is_column(self) -> bool:
        """Whether its things, two or more, stand below each other."""
        return len(self.things) > 1 and self.things[0].x == self.things[1].x

    @property
    def default_background(self) -> str:
        """The background it has when the caption names none: white, or grey behind something white."""
        return "grey" if any(thing.colour == "white" for thing in self.things) else "white"

    @property
    def place(self) -> str:
        """The name of the place of its only thing."""
        (thing,) = self.things
        return next(name for name, spot in PLACES.items() if spot == (thing.x, thing.y))


def scene(seed: int) -> Scene:
    """The scene of a seed. Seeds from `HELD_OUT_SEED` on give held-out scenes only, the others none of these."""
    rng = random.Random(seed)
    while True:
        candidate = _any_scene(rng)
        if is_held_out(candidate) == (seed >= HELD_OUT_SEED):
            return candidate


def is_held_out(scene: Scene) -> bool:
    """Whether a scene is kept for evaluation: decided by a checksum of what it shows."""
    words = [f"{thing.size} {thing.colour} {thing.shape} {thing.x} {thing.y}" for thing in scene.things]
    return zlib.crc32("|".join([scene.background, *words]).encode()) % _HELD_OUT_SHARE == 0


def variant(scene: Scene, rng: random.Random) -> Scene:
    """A different scene that is easily taken for this one: attributes swapped between things, or one of them changed.

    A scene of training never gives a held-out one.
    """
    changes = [_recolour, _reshape, _resize, _move, _repaint]
    swaps = [_swap_colours, _swap_shapes, _swap_spots]
    while True:
        is_swap = len(scene.things) > 1 and rng.random() < 0.6
        candidate = rng.choice(swaps if is_swap else changes)(scene, rng)
        may_be_shown = is_held_out(scene) or not is_held_out(candidate)
        if candidate != scene and may_be_shown and _is_valid(candidate):
            return candidate


def _any_scene(rng: random.Random) -> Scene:
    count = rng.choices((1, 2, 3), (50, 40, 10))[0]
    looks: list[tuple[str, str]] = []
    while len(looks) < count:
        look = (rng.choice(SHAPES), rng.choice(list(COLOURS)))
        if look not in looks:
            looks.append(look)
    spots = _row(count, rng.random() < 0.5) if count > 1 else [_place(rng)]
    sizes = _sizes(count, rng)
    things = tuple(Thing(*look, size, *spot) for look, size, spot in zip(looks, sizes, spots, strict=True))
    plain = Scene("", things)
    free = [name for name in BACKGROUNDS if all(name != thing.colour for thing in things)]
    return replace(plain, background=plain.default_background if rng.random() < 0.25 else rng.choice(free))


def _place(rng: random.Random) -> tuple[float, float]:
    return PLACES["centre"] if rng.random() < 0.4 else rng.choice(list(PLACES.values()))


def _row(count: int, is_column: bool) -> list[tuple[float, float]]:
    along = ENDS_OF_THREE if count == 3 else (LOW, HIGH)
    return [(MIDDLE, at) if is_column else (at, MIDDLE) for at in along]


def _sizes(count: int, rng: random.Random) -> list[str]:
    """Medium for most; three in a row leave no room for large ones."""
    if rng.random() < 0.5:
        return ["medium"] * count
    names = ["small", "medium"] if count == 3 else list(SIZES)
    return [rng.choice(names) for _ in range(count)]


def _is_valid(scene: Scene) -> bool:
    looks = [(thing.shape, thing.colour) for thing in scene.things]
    is_crowded = len(looks) == 3 and any(thing.size == "large" for thing in scene.things)
    return len(set(looks)) == len(looks) and scene.background not in {colour for _, colour in looks} and not is_crowded


def _with(scene: Scene, index: int, **changes: str | float) -> Scene:
    things = list(scene.things)
    things[index] = replace(things[index], **changes)  # type: ignore[arg-type]  # names and types are the fields'
    return replace(scene, things=tuple(things))


def _pair(scene: Scene, rng: random.Random) -> tuple[int, int]:
    first, second = rng.sample(range(len(scene.things)), 2)
    return first, second


def _swap_colours(scene: Scene, rng: random.Random) -> Scene:
    a, b = _pair(scene, rng)
    swapped = _with(scene, a, colour=scene.things[b].colour)
    return _with(swapped, b, colour=scene.things[a].colour)


def _swap_shapes(scene: Scene, rng: random.Random) -> Scene:
    a, b = _pair(scene, rng)
    swapped = _with(scene, a, shape=scene.things[b].shape)
    return _with(swapped, b, shape=scene.things[a].shape)


def _swap_spots(scene: Scene, rng: random.Random) -> Scene:
    a, b = _pair(scene, rng)
    things, (first, second) = list(scene.things), (scene.things[a], scene.things[b])
    things[a], things[b] = replace(second, x=first.x, y=first.y), replace(first, x=second.x, y=second.y)
    return replace(scene, things=tuple(things))


def _recolour(scene: Scene, rng: random.Random) -> Scene:
    return _with(scene, rng.randrange(len(scene.things)), colour=rng.choice(list(COLOURS)))


def _reshape(scene: Scene, rng: random.Random) -> Scene:
    return _with(scene, rng.randrange(len(scene.things)), shape=rng.choice(SHAPES))


def _resize(scene: Scene, rng: random.Random) -> Scene:
    return _with(scene, rng.randrange(len(scene.things)), size=rng.choice(list(SIZES)))


def _move(scene: Scene, rng: random.Random) -> Scene:
    """To another place when alone, else from a row to a column or back."""
    spots = [rng.choice(list(PLACES.values()))]
    if len(scene.things) > 1:
        spots = _row(len(scene.things), not scene.is_column)
    moved = tuple(replace(thing, x=x, y=y) for thing, (x, y) in zip(scene.things, spots, strict=True))
    return replace(scene, things=moved)


def _repaint(scene: Scene, rng: random.Random) -> Scene:
    return replace(scene, background=rng.choice(list(BACKGROUNDS)))
