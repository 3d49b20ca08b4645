"""The prompts that `icons_judge` asks for, with what each picture should show.

Scenes have seeds from `scenes.HELD_OUT_SEED` on: every one shows a pair of thing and ground, or of two things, that
training never sees.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from star_cli.data.icons.captions import caption
from star_cli.data.icons.catalogue import Catalogue
from star_cli.data.icons.layout import IconScene
from star_cli.data.icons.scenes import HELD_OUT_SEED, SceneMix, default_ground, scene
from star_cli.data.icons.words import with_article

WANTED = {"one": 200, "two": 150, "counted": 150, "two_common": 100, "counted_common": 100, "over": 100}
"""Prompts by kind: one thing on a held-out ground, two things never seen together, one to three of a kind; two and one
to three once more of common things (`IconObject.is_common`); something of the sky above a common thing that stands."""
SYNONYMS = 100
_MIXES = {
    "one": SceneMix(plain=0, ground=1),
    "two": SceneMix(plain=0, pair=1),
    "counted": SceneMix(plain=0, ground=1, count=2),
    "two_common": SceneMix(plain=0, pair=1, common=True),
    "counted_common": SceneMix(plain=0, count=1, common=True),
    "over": SceneMix(plain=0, over=1),
}


@dataclass(frozen=True)
class Asked:
    """A prompt and what a picture of it shows."""

    kind: str
    prompt: str
    counts: dict[str, int]
    """How many of each thing, by key."""
    background: str
    scene: IconScene | None = None
    """The scene it describes; None for one thing alone."""

    @property
    def number(self) -> int:
        """Things in all."""
        return sum(self.counts.values())


def prompts(catalogue: Catalogue, seed: int = 0) -> list[Asked]:
    """The prompts of every kind of `WANTED`, no caption twice.

    Args:
        catalogue: the objects that the model knows.
        seed: another one gives other prompts.
    """
    asked: list[Asked] = []
    for number, kind in enumerate(WANTED):
        first = HELD_OUT_SEED + seed * 10_000_000 + number * 1_000_000
        asked += _first(catalogue, kind, first, {one.prompt for one in asked})
    return asked


def synonyms(catalogue: Catalogue, seed: int = 0) -> list[Asked]:
    """Up to 100 prompts, each by a word that no icon of the set is called by."""
    rng = random.Random(f"synonyms {seed}")
    own_words = {word for icon in catalogue.renders.icons.icons for word in (icon, *icon.split("-"))}
    found = []
    for thing in catalogue.objects:
        for name in thing.free_names[1:]:
            if not any(word in own_words for word in (name, *name.replace("-", " ").split())):
                words = name if thing.is_mass or thing.is_plural else with_article(name)
                found.append(Asked("synonym", words, {thing.key: 1}, default_ground([thing])))
    return rng.sample(found, min(SYNONYMS, len(found)))


def _first(catalogue: Catalogue, kind: str, first_seed: int, taken: set[str]) -> Iterator[Asked]:
    """The first prompts of a kind, in the order of their seeds."""
    wanted = WANTED[kind]
    for seed in count(first_seed):
        shown = scene(catalogue, _MIXES[kind], seed)
        words = caption(catalogue, shown, random.Random(f"judge {seed}"))
        if len(shown.items) > 3 or words in taken:
            continue
        taken.add(words)
        wanted -= 1
        yield Asked(kind, words, shown.counts, shown.background, shown)
        if not wanted:
            return
