"""Scenes of icons in English: short and long, with synonyms, plurals and many word orders, none of which lies.

What a caption leaves out has a fixed meaning, see scenes.py: one thing of middle size in the centre, upright, on white
(light blue behind something pale).
"""

from __future__ import annotations

import random

from star_cli.data.icons.backgrounds import BACKGROUNDS, PLAIN
from star_cli.data.icons.catalogue import Catalogue, IconObject
from star_cli.data.icons.layout import PLACES, IconScene, Item
from star_cli.data.icons.phrases import (
    ABOVE,
    BESIDE,
    CORNER_WORDS,
    GROUND_NAMES,
    GROUND_WORDS,
    IN_FRONT,
    NUMBER_WORDS,
    ON_GRADIENT,
    OPENERS,
    OTHERS,
    PLACE_WORDS,
    PLAIN_FORMS,
    SIZE_WORDS,
    STYLES,
    THREE,
    TILTED,
    TURNED,
    VERB_GROUNDS,
    VERBS,
)
from star_cli.data.icons.scenes import default_ground
from star_cli.data.icons.words import plural, with_article
from star_cli.vocabulary import split_words


def caption(catalogue: Catalogue, scene: IconScene, rng: random.Random) -> str:
    """One of the many English captions of a scene; fresh numbers from `rng` give fresh words."""
    things = [catalogue.by_key[key] for key in scene.keys]
    says_ground = scene.background != default_ground(things) or rng.random() < 0.3
    is_bare = rng.random() < 0.15  # "cat", "red apple on grass"
    body = _body(catalogue, scene, rng, is_bare)
    words = _with_ground(scene, things, body, rng) if says_ground else body
    words = _styled(words, rng, may_open=words.startswith(body))
    if rng.random() < 0.08:
        words = words[0].upper() + words[1:]
    return words + "." if rng.random() < 0.06 else words


def known_words(catalogue: Catalogue) -> frozenset[str]:
    """Every word, in small letters, that a caption of these objects may use: a prompt's other words say nothing to a
    model that learned from them alone.
    """
    said: list[str] = [*PLACES, *PLAIN, *BACKGROUNDS, *OPENERS, *STYLES, *CORNER_WORDS, *PLAIN_FORMS]
    for table in (SIZE_WORDS, NUMBER_WORDS, PLACE_WORDS, GROUND_WORDS, GROUND_NAMES, VERBS):
        said += [words for forms in table.values() for words in forms]
    said += [*BESIDE, *ABOVE, *IN_FRONT, *THREE, *OTHERS]
    for thing in catalogue.objects:
        said += [form for name in thing.names for form in (name, plural(name))]
    return frozenset(split_words(said))


def noun(thing: IconObject, rng: random.Random, size: str = "medium", is_bare: bool = False) -> str:
    """What one thing is called, with article, size and at times its colour.

    Args:
        thing: which.
        rng: decides the words.
        size: a key of `SIZE_WORDS`.
        is_bare: without article.
    """
    adjective = rng.choice(SIZE_WORDS[size])
    name = _name(thing, rng, needs_free=bool(adjective))
    if name in thing.fixed_names:
        return " ".join(filter(None, (adjective, name)))
    colour = thing.look.said_colour if rng.random() < 0.15 else ""
    if colour and not any(known in name for known in PLAIN):
        name = f"{colour} {name}"
    name = " ".join(filter(None, (adjective, name)))
    if is_bare:
        return name
    if thing.is_mass or thing.is_plural:
        return name if rng.random() < 0.5 else f"some {name}"
    return f"the {name}" if rng.random() < 0.04 else with_article(name)


def counted(thing: IconObject, number: int, rng: random.Random) -> str:
    """Several of one thing: "three red apples"."""
    names = [name for name in thing.free_names if "'s" not in name]
    name = plural(names[0] if rng.random() < 0.6 else rng.choice(names))
    if thing.look.said_colour and rng.random() < 0.25 and not any(known in name for known in PLAIN):
        name = f"{thing.look.said_colour} {name}"
    return f"{rng.choice(NUMBER_WORDS[number])} {name}"


def _name(thing: IconObject, rng: random.Random, needs_free: bool = False) -> str:
    names = (thing.free_names or thing.names) if needs_free else thing.names
    return names[0] if rng.random() < 0.5 else rng.choice(names)


def _body(catalogue: Catalogue, scene: IconScene, rng: random.Random, is_bare: bool) -> str:
    """The things and how they stand to each other."""
    things = [catalogue.by_key[key] for key in scene.keys]
    counts = list(scene.counts.values())
    if len(things) == 1:
        if counts[0] == 1:
            return _one(things[0], scene, scene.items[0], rng, is_bare)
        is_row = len({item.y for item in scene.items}) == 1
        row = rng.choice(("", "", "", " in a row")) if is_row else ""
        return counted(things[0], counts[0], rng) + row
    nouns = [
        noun(thing, rng, is_bare=is_bare) if count == 1 else counted(thing, count, rng)
        for thing, count in zip(things, counts, strict=True)
    ]
    return _together(scene, nouns, rng)


def _together(scene: IconScene, nouns: list[str], rng: random.Random) -> str:
    named = dict(zip("abc", nouns, strict=False))
    if len(nouns) == 3:
        return rng.choice(THREE).format(**named)
    if len(scene.items) == 3:
        return "{a} and {b}".format(**named)
    forms = {"above": ABOVE, "in front": IN_FRONT}.get(scene.relation, BESIDE)
    return rng.choice(forms).format(**named)


def _one(thing: IconObject, scene: IconScene, item: Item, rng: random.Random, is_bare: bool) -> str:
    if thing.body_names and item.size == "medium" and rng.random() < 0.6:
        said = _whole_animal(thing, rng)
    else:
        said = noun(thing, rng, item.size, is_bare)
    if item.is_flipped and rng.random() < 0.5:
        said += rng.choice(TURNED)
    if item.angle and rng.random() < 0.7:
        said += rng.choice(TILTED[item.angle])
    where = _where(scene.place, rng) if item.size == "small" else ""
    return f"{said} {where}".strip()


def _whole_animal(thing: IconObject, rng: random.Random) -> str:
    """Its face has the plain name, so the whole animal is told by what it does."""
    name = rng.choice(thing.body_names)
    verb = rng.choice(VERBS["body"])
    forms = (f"{with_article(name)} {verb}", with_article(f"{verb} {name}"), with_article(f"whole {name}"))
    return rng.choice(forms)


def _where(place: str, rng: random.Random) -> str:
    if place == "centre" and rng.random() < 0.7:
        return ""
    if place in PLACE_WORDS:
        return rng.choice(PLACE_WORDS[place])
    corner = place.replace("top", "upper").replace("bottom", "lower") if rng.random() < 0.25 else place
    return rng.choice(CORNER_WORDS).format(corner)


def _with_ground(scene: IconScene, things: list[IconObject], body: str, rng: random.Random) -> str:
    ground = scene.background
    if ground not in GROUND_WORDS:
        return _on_plain(ground, body, rng)
    chance = rng.random()
    if chance < 0.12:
        name = rng.choice(GROUND_NAMES[ground])
        return rng.choice(
            (f"{body}, {name} background", f"{body} with {with_article(name)} background", f"{body}, {name}")
        )
    where = rng.choice(GROUND_WORDS[ground])
    if chance < 0.2:
        return f"{where}, {body}"
    verb = _verb(ground, things, body, rng) if scene.relation == "none" else ""
    return " ".join(filter(None, (body, verb, where)))


def _on_plain(ground: str, body: str, rng: random.Random) -> str:
    colour = ground.replace("grey", "gray") if rng.random() < 0.3 else ground
    colour = colour.replace("light blue", rng.choice(("light blue", "light blue", "pale blue", "sky blue")))
    if ground.endswith("gradient"):
        return f"{body} " + rng.choice(ON_GRADIENT).format(with_article(colour))
    if rng.random() < 0.25:
        return f"{body}, {colour} background"
    return f"{body} " + rng.choice(PLAIN_FORMS).format(x=colour, a_x=with_article(colour))


def _verb(ground: str, things: list[IconObject], body: str, rng: random.Random) -> str:
    """What the only thing does there, if it can and nothing is said of that yet."""
    if rng.random() < 0.6 or "," in body or " in the " in body or any(verb in body for verb in VERBS["body"]):
        return ""
    kind = _kind_of_verb(things[0])
    if ground not in VERB_GROUNDS.get(kind, ("grass", "snow", "sand")):
        return ""
    return rng.choice(VERBS[kind]) if kind in VERBS else ""


def _kind_of_verb(thing: IconObject) -> str:
    if thing.stance == "sky":
        return "sky" if thing.category in ("animals", "vehicles") else ""
    if thing.stance == "water":
        return "boats" if thing.category == "vehicles" else "swimmers" if thing.category == "animals" else ""
    if thing.category == "animals":
        return "face" if any(" face" in name or " head" in name for name in thing.names) else "animals"
    return thing.category


def _styled(words: str, rng: random.Random, may_open: bool) -> str:
    chance = rng.random()
    if chance < 0.12 and may_open:
        return f"{rng.choice(OPENERS)} {words}"
    if chance > 0.86:
        return f"{words}, {rng.choice(STYLES)}"
    return words
