"""Scenes that are easily taken for each other: the hard negatives of a contrastive loss."""

from __future__ import annotations

import random
from dataclasses import replace

from star_cli.data.icons.backgrounds import GROUNDED, LANDSCAPES
from star_cli.data.icons.catalogue import Catalogue, IconObject
from star_cli.data.icons.layout import PLACES, IconScene, Relation, arrange, put, together
from star_cli.data.icons.scenes import any_ground, is_held_out


def variant(catalogue: Catalogue, shown: IconScene, rng: random.Random) -> IconScene:
    """A scene that is easily taken for this one: another ground, another thing, things changed about, another number.

    A scene without held-out pairs never gives one with them.
    """
    is_kept = any(map(is_held_out, shown.pairs))
    while True:
        change = rng.choice((_repaint, _exchange, _swap if len(shown.keys) > 1 else _recount))
        candidate = change(catalogue, shown, rng)
        if candidate != shown and (is_kept or not any(map(is_held_out, candidate.pairs))):
            return candidate


def _things(catalogue: Catalogue, shown: IconScene) -> list[IconObject]:
    return [catalogue.by_key[item.key] for item in shown.items]


def _lay_out(catalogue: Catalogue, shown: IconScene, things: list[IconObject], ground: str) -> IconScene:
    """The same kind of scene with other things or on another ground."""
    if shown.relation in ("beside", "above", "in front"):
        items = arrange(things[0], things[1], shown.relation, ground)
    elif shown.relation == "row":
        items = together(things, ground)
    else:
        (old,) = shown.items
        kept = replace(
            old, is_flipped=old.is_flipped and things[0].may_flip, angle=old.angle if things[0].may_turn else 0
        )
        anew = put(things[0], ground, *PLACES[shown.place], old.side, old.size)
        items = [replace(kept, key=anew.key, x=anew.x, y=0.5 if old.size == "large" else anew.y)]
    number = shown.variant if ground in LANDSCAPES else 0
    return IconScene(ground, number, tuple(items), shown.relation, shown.place)


def _repaint(catalogue: Catalogue, shown: IconScene, rng: random.Random) -> IconScene:
    things = _things(catalogue, shown)
    ground = any_ground(things, rng, plain=0.5)
    needs_air = ground in GROUNDED and (len(things) == 4 or "top" in shown.place)
    return shown if needs_air else _lay_out(catalogue, shown, things, ground)


def _exchange(catalogue: Catalogue, shown: IconScene, rng: random.Random) -> IconScene:
    """One kind of thing becomes another, of the same category when there is one."""
    old = rng.choice(shown.keys)
    category = catalogue.by_key[old].category
    needs_count = shown.counts[old] > 1
    near = [t for t in catalogue.objects if t.category == category and t.stance == catalogue.by_key[old].stance]
    pool = [
        thing
        for thing in (near if len(near) > 1 else catalogue.objects)
        if thing.key not in shown.keys and (thing.may_be_counted or not needs_count)
    ]
    if not pool:
        return shown
    new = rng.choice(pool)
    things = [new if thing.key == old else thing for thing in _things(catalogue, shown)]
    if any(thing.look.colour == shown.background for thing in things):
        return shown
    return _lay_out(catalogue, shown, things, shown.background)


def _swap(catalogue: Catalogue, shown: IconScene, rng: random.Random) -> IconScene:
    """Two kinds change places, or stand to each other in another way."""
    things = _things(catalogue, shown)
    if shown.relation != "row" and rng.random() < 0.4:
        relation: Relation = rng.choice(("beside", "above", "in front"))
        return _lay_out(catalogue, replace(shown, relation=relation), things, shown.background)
    if len(things) == 3:
        rng.shuffle(things)
        return _lay_out(catalogue, shown, things if _is_sayable(things) else things[::-1], shown.background)
    return _lay_out(catalogue, shown, things[::-1], shown.background)


def _is_sayable(things: list[IconObject]) -> bool:
    """Three kinds, or two of one kind side by side."""
    return len(set(things)) == 3 or things[1] in (things[0], things[2])


def _recount(catalogue: Catalogue, shown: IconScene, rng: random.Random) -> IconScene:
    thing = catalogue.by_key[shown.keys[0]]
    if not thing.may_be_counted or shown.relation != "row":
        return shown
    number = rng.choice([n for n in (2, 3, 4) if n < 4 or shown.background not in GROUNDED])
    return _lay_out(catalogue, shown, [thing] * number, shown.background)
