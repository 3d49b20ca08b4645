"""What every training set is: pictures with captions, counted from 0, the same ones each time.

A set is map-style so that a run's position is one number, its step: whoever resumes it sees the pictures it would have
seen. Letters: R pixels per side.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from star_cli.data import shapes
from star_cli.vocabulary import split_words

if TYPE_CHECKING:
    from torch import Tensor  # counting and checking pictures needs no torch

Crop = Literal["centre", "random"]
_CAPTIONS_WITH_ALL_WORDS = 3000
GENERATED = "generated scenes"


class CaptionedImages(ABC):
    """Pictures with captions. Picklable: worker processes get a copy."""

    is_generated = False
    """Are the pictures made as they are asked for, each with a new caption every time?"""

    @property
    def words(self) -> frozenset[str] | None:
        """All words, in small letters, that its captions use; None: nobody has counted."""
        return None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when another set would come out: of names, sizes and captions, not of every pixel."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pictures."""

    def others(self, count: int) -> CaptionedImages | None:
        """So many pictures of the same kind that none of these is; None: there are no more."""
        return None

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a picture in a message: a path, a member of a shard, a seed."""

    @abstractmethod
    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a picture; empty when it has none. Reads no pixels.

        Raises:
            BadImageError: its captions cannot be read.
        """

    def caption(self, index: int, rng: random.Random) -> str:
        """One caption of a picture; "" when it has none."""
        captions = self.captions(index)
        return rng.choice(captions) if captions else ""

    @abstractmethod
    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        """A picture as a square: shorter side resized to R, then cropped.

        Args:
            index: which picture.
            resolution: R.
            crop: where the square is taken from the longer side.
            rng: decides a random crop.
        Returns:
            (3, R, R), float32, -1..1.
        Raises:
            BadImageError: it cannot be read.
        """


def count_in_words(pictures: CaptionedImages) -> int | str:
    """How many pictures there are; of generated ones that they are, for their number says nothing."""
    return GENERATED if pictures.is_generated else len(pictures)


class ShapeScenes(CaptionedImages):
    """The built-in generated scenes: seeds 0, 1, 2, ..., a new caption each time."""

    is_generated = True

    @property
    def words(self) -> frozenset[str]:
        """Those of a few thousand captions, which leave none out."""
        return frozenset(split_words(shapes.sample(seed)[1] for seed in range(_CAPTIONS_WITH_ALL_WORDS)))

    def __init__(self, count: int, first_seed: int = 0):
        self.count, self.first_seed = count, first_seed

    @property
    def fingerprint(self) -> str:
        """Scenes follow from their seeds."""
        return f"shapes {self.first_seed} {self.count}"

    def __len__(self) -> int:
        """Number of scenes."""
        return self.count

    def others(self, count: int) -> ShapeScenes:
        """Scenes with pairs of things that no other scene has."""
        return ShapeScenes(count, shapes.HELD_OUT_SEED)

    def name(self, index: int) -> str:
        """The scene's seed."""
        return f"shapes seed {self.first_seed + index}"

    def captions(self, index: int) -> tuple[str, ...]:
        """The caption that goes with the seed."""
        return (shapes.sample(self.first_seed + index)[1],)

    def caption(self, index: int, rng: random.Random) -> str:
        """A caption written anew."""
        return shapes.caption(shapes.scene(self.first_seed + index), rng)

    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        """The scene, drawn at R: nothing is resized or cropped."""
        return shapes.render_tensor(shapes.scene(self.first_seed + index), resolution)
