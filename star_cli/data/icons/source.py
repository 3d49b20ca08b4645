"""Scenes of icons as a training set, see `star_cli.data.source`."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import astuple

from torch import Tensor

from star_cli.data.icons.captions import caption, known_words
from star_cli.data.icons.catalogue import DEFAULT_OBJECTS, Catalogue, open_catalogue
from star_cli.data.icons.compose import compose_tensor
from star_cli.data.icons.labels import labels
from star_cli.data.icons.layout import IconScene
from star_cli.data.icons.scenes import HELD_OUT_SEED, MIXES, SceneMix, check_held_out, check_objects, scene
from star_cli.data.source import CaptionedImages, Crop
from star_cli.errors import OptionError


class IconScenes(CaptionedImages):
    """Endless composed pictures: seeds first_seed, first_seed + 1, ..., a new caption each time.

    Picklable without icons or pixels: workers read them from the cache. Call `prepare` once before they start.

    Args:
        count: number of scenes.
        first_seed: seed of the first; from `scenes.HELD_OUT_SEED` on, scenes have a held-out pair.
        mix: which scenes, by name (`scenes.MIXES`) or in detail.
        catalogue: the objects.
    Raises:
        OptionError: no such mix, or too few objects for it.
    """

    is_generated = True

    @property
    def words(self) -> frozenset[str]:
        """What captions of these objects may say."""
        return known_words(self.catalogue)

    def __init__(self, catalogue: Catalogue, count: int, first_seed: int = 0, mix: SceneMix | str = "full"):
        self.catalogue, self.count, self.first_seed = catalogue, count, first_seed
        if isinstance(mix, str) and mix not in MIXES:
            raise OptionError(f"no mix of scenes is called {mix}", f"known: {', '.join(MIXES)}")
        self.mix = MIXES[mix] if isinstance(mix, str) else mix
        check_objects(catalogue, self.mix)
        if first_seed + count > HELD_OUT_SEED:
            check_held_out(catalogue)

    @classmethod
    def open(
        cls,
        count: int,
        first_seed: int = 0,
        mix: SceneMix | str = "full",
        objects: int = DEFAULT_OBJECTS,
    ) -> IconScenes:
        """The scenes with the icons of the cache, fetched into it where they are not there."""
        return cls(open_catalogue(None, objects), count, first_seed, mix)

    def prepare(self, resolution: int, on_icon: Callable[[int, int], None] | None = None) -> None:
        """Render all icons for scenes of this resolution into the cache, unless they are there."""
        self.catalogue.renders.prepare([thing.icon for thing in self.catalogue.objects], resolution, on_icon)

    @property
    def fingerprint(self) -> str:
        """Scenes follow from their seeds, the mix and the objects."""
        return f"icons {self.catalogue.fingerprint} {self.first_seed} {self.count} {astuple(self.mix)}"

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def others(self, count: int) -> IconScenes | None:
        """Scenes of the same mix, each with a held-out pair; None where so few things have none."""
        try:
            return IconScenes(self.catalogue, count, HELD_OUT_SEED, self.mix)
        except OptionError:
            return None

    def name(self, index: int) -> str:
        """The scene's seed."""
        return f"icons seed {self.first_seed + index}"

    def scene(self, index: int) -> IconScene:
        """What a picture shows."""
        return scene(self.catalogue, self.mix, self.first_seed + index)

    def labels(self, index: int) -> list[int]:
        """What it shows as class indices, see `labels.labels`."""
        return labels(self.catalogue, self.scene(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """The caption that goes with the seed."""
        return (self.caption(index, random.Random(f"caption {self.first_seed + index}")),)

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption written anew."""
        return caption(self.catalogue, self.scene(index), rng)

    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        """The scene, composed at R: nothing is resized or cropped."""
        return compose_tensor(self.catalogue, self.scene(index), resolution)
