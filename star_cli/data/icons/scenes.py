"""Scenes of icons from a seed: what stands where, on what ground.

Everything that varies is said by the caption or fixed by a default, so that a caption decides its picture: a thing
alone is of middle size in the centre, on white (light blue behind something pale). Which mixture of scenes a seed is
drawn from is a `SceneMix`: training begins with one thing in one pose on plain ground and widens.

One in ten pairs of thing and ground, and of thing and thing, is held out: no seed below `HELD_OUT_SEED` shows it.
Lengths are shares of the picture's side; y runs downwards.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

from star_cli.data.icons.backgrounds import FLAT, GROUNDED, LANDSCAPES, PLAIN, VARIANTS
from star_cli.data.icons.catalogue import Catalogue, IconObject
from star_cli.data.icons.layout import PLACES, SIDES, IconScene, Item, Relation, Size, arrange, put, together
from star_cli.errors import OptionError
from star_cli.models.config import Config

HELD_OUT_SEED = 1_000_000_000
"""Seeds from here on give scenes with a held-out pair, those below give none."""
_HELD_OUT_SHARE = 10
_MORE_OBJECTS = "give more objects (--objects N, or icons:MIX:N)"
_PATIENCE = 400  # tries of one kind of scene; a pair is held out once in ten


@dataclass(frozen=True, kw_only=True)
class SceneMix(Config):
    """How often each kind of scene comes, relative to the others."""

    usual: float = 0.0
    """One thing in its usual pose on the ground that goes unsaid: what a prompt of one word asks for."""
    plain: float = 1.0
    """One thing in its usual pose on a plain colour."""
    ground: float = 0.0
    """The same on a gradient or a landscape."""
    posed: float = 0.0
    """One thing small or large, and small ones anywhere; mirrored or turned at times; on anything."""
    count: float = 0.0
    """Two to four of a kind."""
    pair: float = 0.0
    """Two kinds: beside, above or in front."""
    group: float = 0.0
    """Three kinds in a row, or two of one and one of another."""
    over: float = 0.0
    """A thing of the sky above a common one that stands or floats: where each belongs, the kinds alone tell."""
    jitter: float = 0.0
    """Places and sizes wander by up to this share, unsaid."""
    common: bool = False
    """Where several things stand together they are common ones, see `IconObject.is_common`."""

    def __post_init__(self) -> None:
        if min(self.weights) < 0 or sum(self.weights) <= 0 or not 0 <= self.jitter <= 0.2:
            raise OptionError("a mix of scenes needs shares of at least 0, not all 0, and a jitter from 0 to 0.2")

    @property
    def weights(self) -> tuple[float, ...]:
        """The shares in the order of `KINDS`."""
        return self.usual, self.plain, self.ground, self.posed, self.count, self.pair, self.group, self.over


KINDS = ("usual", "plain", "ground", "posed", "count", "pair", "group", "over")
MIXES = {
    "simple": SceneMix(),
    "grounds": SceneMix(plain=0.35, ground=0.65),
    "usual": SceneMix(usual=0.5, plain=0.2, ground=0.3),
    "composed": SceneMix(usual=0.28, plain=0.04, ground=0.22, count=0.18, over=0.28, common=True),
    "full": SceneMix(plain=0.2, ground=0.24, posed=0.14, count=0.16, pair=0.2, group=0.06),
}
"""Mixtures by name, from the easiest to the hardest."""


_NEEDED = {"pair": (2, 0), "count": (1, 1), "group": (3, 1), "over": (2, 0)}
"""Objects that a kind of scene needs, and how many of them must be such as can be counted; of others one is enough."""


def check_objects(catalogue: Catalogue, mix: SceneMix) -> None:
    """Are there as many objects as the scenes of a mix show at once? Without them they could never be drawn.

    Raises:
        OptionError: there are too few, or too few that can be counted.
    """
    needs = [_NEEDED.get(kind, (1, 0)) for kind, weight in zip(KINDS, mix.weights, strict=True) if weight > 0]
    needed, counted = (max(column) for column in zip(*needs, strict=True))
    objects = catalogue.common if mix.common else catalogue.objects
    found, hint = len(objects), f"{_MORE_OBJECTS}, or a simpler mix, such as grounds"
    if found < needed:
        raise OptionError(f"this mix of scenes shows {needed} kinds of things at once, and there are {found}", hint)
    if sum(thing.may_be_counted for thing in objects) < counted:
        raise OptionError(f"this mix of scenes counts things, and none of these {found} can be counted", hint)
    if mix.over and not (_flying(catalogue) and _standing(catalogue)):
        words = f"of these {len(catalogue.objects)} none is of the sky, or none is a common one that stands"
        raise OptionError(f"this mix of scenes shows things of the sky above others: {words}", hint)


def check_held_out(catalogue: Catalogue) -> None:
    """Is there a held-out scene, be it of one thing? See `scene`.

    Raises:
        OptionError: no pair of an object and a ground is held out.
    """
    for thing in catalogue.objects:
        if any(is_held_out((thing.key, f"on {ground}")) for ground in (*LANDSCAPES, *_gradients([thing]))):
            return
    raise OptionError(f"no scene of these {len(catalogue.objects)} things is held out", _MORE_OBJECTS)


def is_held_out(pair: tuple[str, str]) -> bool:
    """Whether a pair is kept for evaluation: two keys in any order, or a key and "on GROUND"."""
    return zlib.crc32("|".join(sorted(pair)).encode()) % _HELD_OUT_SHARE == 0


def scene(catalogue: Catalogue, mix: SceneMix, seed: int) -> IconScene:
    """The scene of a seed. Seeds from `HELD_OUT_SEED` on show a held-out pair, the others none.

    A held-out scene of one kind has a held-out ground, one of several kinds a held-out pair of things.
    """
    rng = random.Random(f"icons {seed}")
    wants_held_out = seed >= HELD_OUT_SEED
    (kind,) = rng.choices(KINDS, mix.weights)
    if wants_held_out and kind in ("usual", "plain"):
        kind = "ground"
    for attempt in count():
        if attempt == _PATIENCE:  # among very few things no two are held out
            kind = "ground"
        candidate = _DRAWN[kind](catalogue, mix, rng)
        pairs = list(candidate.pairs)
        if wants_held_out:
            among = [pair for pair in pairs if len(candidate.keys) == 1 or not pair[1].startswith("on ")]
            if any(map(is_held_out, among)):
                return candidate
        elif not any(map(is_held_out, pairs)):
            return candidate
    raise AssertionError("endless")


def default_ground(things: Iterable[IconObject]) -> str:
    """The ground that goes unsaid."""
    return "light blue" if any(thing.look.is_pale for thing in things) else "white"


def _choose(
    catalogue: Catalogue, rng: random.Random, count: int = 1, is_counted: bool = False, is_common: bool = False
) -> list[IconObject]:
    """Kinds of things, each once."""
    objects = catalogue.common if is_common else catalogue.objects
    chosen: list[IconObject] = []
    while len(chosen) < count:
        thing = rng.choice(objects)
        if thing not in chosen and (thing.may_be_counted or not is_counted):
            chosen.append(thing)
    return chosen


def _plain_ground(things: list[IconObject], rng: random.Random) -> str:
    """A plain colour that the things stand out from; in every other scene the one that goes unsaid."""
    if rng.random() < 0.5:
        return default_ground(things)
    colours = {thing.look.colour for thing in things} | ({"white"} if any(t.look.is_pale for t in things) else set())
    return rng.choice([name for name in PLAIN if name not in colours])


def any_ground(things: list[IconObject], rng: random.Random, plain: float) -> str:
    """A ground that the things stand out from: a plain colour in so many of all cases."""
    if rng.random() < plain:
        return _plain_ground(things, rng)
    gradients = _gradients(things)
    return rng.choice(LANDSCAPES) if rng.random() < 0.75 else rng.choice(gradients)


def _gradients(things: list[IconObject]) -> list[str]:
    """Those that the things stand out from."""
    colours = {thing.look.colour for thing in things}
    return [name for name in FLAT if name not in PLAIN and name.split()[0] not in colours]


def _finish(
    ground: str,
    items: list[Item],
    mix: SceneMix,
    rng: random.Random,
    relation: Relation = "none",
    place: str = "centre",
) -> IconScene:
    number = rng.randrange(VARIANTS) if ground in LANDSCAPES else 0
    if mix.jitter:
        items = [_wander(item, mix.jitter, rng) for item in items]
    return IconScene(ground, number, tuple(items), relation, place)


def _wander(item: Item, jitter: float, rng: random.Random) -> Item:
    by_x, by_y, by_side = (rng.uniform(-jitter, jitter) for _ in range(3))
    return replace(
        item,
        x=round(item.x + by_x * item.side, 4),
        y=round(item.y + by_y * item.side, 4),
        side=round(item.side * (1 + by_side), 4),
    )


def _draw_usual(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    (thing,) = _choose(catalogue, rng)
    ground = default_ground([thing])
    return _finish(ground, [put(thing, ground, 0.5, 0.5, SIDES["medium"])], mix, rng)


def _draw_plain(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    (thing,) = _choose(catalogue, rng)
    ground = _plain_ground([thing], rng)
    return _finish(ground, [put(thing, ground, 0.5, 0.5, SIDES["medium"])], mix, rng)


def _draw_ground(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    (thing,) = _choose(catalogue, rng)
    ground = any_ground([thing], rng, plain=0.0)
    return _finish(ground, [put(thing, ground, 0.5, 0.5, SIDES["medium"])], mix, rng)


def _draw_posed(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    (thing,) = _choose(catalogue, rng)
    ground = any_ground([thing], rng, plain=0.5)
    size: Size = rng.choice(("small", "small", "large", "medium"))
    place = rng.choice(list(PLACES)) if size == "small" else "centre"
    if ground in GROUNDED and thing.stance != "sky":
        place = place.replace("top", "").strip() or "centre"  # nothing that stands on the ground is up in the air
    item = put(thing, ground, *PLACES[place], SIDES[size], size)
    if size == "large":
        item = replace(item, y=0.5)
    if thing.may_flip and rng.random() < 0.3:
        item = replace(item, is_flipped=True)
    if thing.may_turn and rng.random() < 0.3:
        item = replace(item, angle=rng.choice((-15, 15)))
    return _finish(ground, [item], mix, rng, place=place)


def _draw_count(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    (thing,) = _choose(catalogue, rng, is_counted=True, is_common=mix.common)
    (number,) = rng.choices((2, 3, 4), (45, 40, 15))
    ground = any_ground([thing], rng, plain=0.6)
    if number == 4 and ground in GROUNDED:
        ground = _plain_ground([thing], rng)  # four stand in a square, for which there is no room on the ground
    return _finish(ground, together([thing] * number, ground), mix, rng, "row")


def _draw_pair(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    first, second = _choose(catalogue, rng, 2, is_common=mix.common)
    relation: Relation = rng.choices(("beside", "above", "in front"), (50, 30, 20))[0]
    ground = any_ground([first, second], rng, plain=0.6)
    return _finish(ground, arrange(first, second, relation, ground), mix, rng, relation)


def _draw_over(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    above, below = rng.choice(_flying(catalogue)), rng.choice(_standing(catalogue))
    ground = any_ground([above, below], rng, plain=0.4)
    return _finish(ground, arrange(above, below, "above", ground), mix, rng, "above")


def _flying(catalogue: Catalogue) -> list[IconObject]:
    return [thing for thing in catalogue.objects if thing.stance == "sky"]


def _standing(catalogue: Catalogue) -> list[IconObject]:
    return [thing for thing in catalogue.common if thing.stance in ("ground", "water")]


def _draw_group(catalogue: Catalogue, mix: SceneMix, rng: random.Random) -> IconScene:
    if rng.random() < 0.5:
        things = _choose(catalogue, rng, 3, is_common=mix.common)
    else:
        (many,) = _choose(catalogue, rng, is_counted=True, is_common=mix.common)
        one = many
        while one == many:
            (one,) = _choose(catalogue, rng, is_common=mix.common)
        things = [many, many, one]
    ground = any_ground(things, rng, plain=0.7)
    return _finish(ground, together(things, ground), mix, rng, "row")


_DRAWN = {
    "usual": _draw_usual,
    "plain": _draw_plain,
    "ground": _draw_ground,
    "posed": _draw_posed,
    "count": _draw_count,
    "pair": _draw_pair,
    "group": _draw_group,
    "over": _draw_over,
}
