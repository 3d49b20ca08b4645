"""What stage 1 learns from: batches of pictures, and of crops of them.

Generated scenes are drawn as they are asked for, and cropped about their things. Any other set of pictures is read,
resized, cut to a square, mirrored now and then, and cropped anywhere.

Letters: B images, H W pixels, R pixels per side.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from star_cli.data import shapes
from star_cli.data.part import hold_out
from star_cli.data.reader import any_other, first_readable
from star_cli.data.source import CaptionedImages, Crop, ShapeScenes, count_in_words
from star_cli.errors import DataError, OptionError
from star_cli.training.loop import BatchSource
from star_cli.training.vqvae_config import VQVAEStageConfig


@dataclass(frozen=True)
class ImageBatch:
    """Pictures of one resolution, or crops of them."""

    images: Tensor
    """(B, 3, H, W), -1..1."""
    unreadable: list[str] = field(default_factory=list)
    """Names of pictures that could not be read; others came in their place."""


@dataclass(frozen=True)
class Make:
    """What kind of batch a step has."""

    resolution: int
    """R of the pictures."""
    crop: int
    """Pixels per side of the crops taken from them; 0: none."""
    count: int
    """B."""


class ImageSource(BatchSource):
    """Batches of whole pictures, now and then at a larger resolution, and of crops; crops alone in the first steps."""

    def __init__(self, config: VQVAEStageConfig, resolutions: Sequence[int], plain_steps: int, seed: int):
        self.config, self.resolutions, self.plain_steps, self.seed = config, sorted(resolutions), plain_steps, seed

    @abstractmethod
    def batch(self, step: int) -> ImageBatch:
        """The batch of one step; steps below 0 are of the kind that follows the first steps."""

    @property
    @abstractmethod
    def data(self) -> CaptionedImages:
        """The pictures."""

    def settings(self) -> dict[str, Any]:
        """Seed, sizes, and how many pictures there are."""
        return {"seed": self.seed, "resolutions": self.resolutions, "pictures": count_in_words(self.data)}

    def _rng(self, step: int, row: str = "") -> random.Random:
        return random.Random(f"vqvae {self.seed} {step}{row}")

    def _make(self, step: int, rng: random.Random) -> Make:
        config = self.config
        smallest, *larger = self.resolutions
        resolution = rng.choice(larger) if larger and rng.random() < config.large_share else smallest
        if 0 <= step < self.plain_steps:
            return Make(resolution, config.plain_crop, config.plain_batch_size)
        if rng.random() < config.crop_share:
            return Make(resolution, config.crop, config.crop_batch_size)
        return Make(resolution, 0, max(1, config.batch_size * smallest**2 // resolution**2))


class SceneSource(ImageSource):
    """Generated scenes, drawn for the batch; a crop shows one of the scene's things."""

    def __init__(
        self, scenes: ShapeScenes, config: VQVAEStageConfig, resolutions: Sequence[int], plain_steps: int, seed: int
    ):
        super().__init__(config, resolutions, plain_steps, seed)
        self.scenes = scenes

    @property
    def data(self) -> CaptionedImages:
        """All scenes."""
        return self.scenes

    def batch(self, step: int) -> ImageBatch:
        """The batch of one step."""
        rng = self._rng(step)
        make = self._make(step, rng)
        return ImageBatch(torch.stack([self._image(make, rng) for _ in range(make.count)]))

    def _image(self, make: Make, rng: random.Random) -> Tensor:
        scene = shapes.scene(self.scenes.first_seed + rng.randrange(len(self.scenes)))
        image = shapes.render_tensor(scene, make.resolution)
        if not make.crop:
            return image
        thing = rng.choice(scene.things)
        left, top = (
            min(
                max(round((middle + rng.uniform(-0.15, 0.15)) * make.resolution) - make.crop // 2, 0),
                make.resolution - make.crop,
            )
            for middle in (thing.x, thing.y)
        )
        return image[:, top : top + make.crop, left : left + make.crop]


class PictureSource(ImageSource):
    """Pictures of a data set. Each row has random numbers of its own, so a process may make its rows alone."""

    reads_pictures = True

    def __init__(
        self,
        pictures: CaptionedImages,
        config: VQVAEStageConfig,
        resolutions: Sequence[int],
        plain_steps: int,
        seed: int,
    ):
        super().__init__(config, resolutions, plain_steps, seed)
        self.pictures = pictures
        if not len(pictures):
            raise DataError("there is no picture to train on")

    @property
    def data(self) -> CaptionedImages:
        """All pictures."""
        return self.pictures

    def batch(self, step: int) -> ImageBatch:
        """The batch of one step."""
        return self.part(step, 0, 1)[0]

    def part(self, step: int, rank: int, world: int) -> tuple[ImageBatch, int]:
        """Rows rank::world of a step's batch, and how many rows the whole batch has.

        Raises:
            DataError: too many pictures in a row cannot be read.
            OptionError: there are fewer rows than processes.
        """
        rng = self._rng(step)
        make = self._make(step, rng)
        known = range(len(self.pictures))
        chosen = rng.sample(known, make.count) if make.count <= len(known) else rng.choices(known, k=make.count)
        if make.count < world:
            raise OptionError(f"a batch of {make.count} cannot be shared by {world} processes", "raise batch_size")
        unreadable: list[str] = []
        rows = range(rank, make.count, world)
        images = [self._image(chosen[row], make, self._rng(step, f" {row}"), unreadable) for row in rows]
        return ImageBatch(torch.stack(images), unreadable), make.count

    def _image(self, index: int, make: Make, rng: random.Random, unreadable: list[str]) -> Tensor:
        image = self._readable(index, make.resolution, rng, unreadable)
        if make.crop:
            left, top = (rng.randint(0, make.resolution - make.crop) for _ in range(2))
            image = image[:, top : top + make.crop, left : left + make.crop]
        return image.flip(-1) if rng.random() < self.config.flip_share else image

    def _readable(self, index: int, resolution: int, rng: random.Random, unreadable: list[str]) -> Tensor:
        """A picture, or another one where it cannot be read: (3, R, R)."""
        square: Crop = self.config.square
        return first_readable(
            chain([index], any_other(self.pictures, rng)),
            lambda index: self.pictures.pixels(index, resolution, square, rng),
            lambda index, _: unreadable.append(self.pictures.name(index)),
        )[1]


def image_source(
    data: CaptionedImages, config: VQVAEStageConfig, resolutions: Sequence[int], plain_steps: int, seed: int
) -> ImageSource:
    """The batches of stage 1.

    Args:
        data: what to learn from.
        config: sizes and shares of batches.
        resolutions: R of the pictures.
        plain_steps: first steps, that learn from small crops alone.
        seed: decides every batch, together with its step.
    """
    if isinstance(data, ShapeScenes):
        return SceneSource(data, config, resolutions, plain_steps, seed)
    return PictureSource(data, config, resolutions, plain_steps, seed)


def check_crops(config: VQVAEStageConfig, smallest: int, factor: int) -> list[int]:
    """The crops that batches are made of.

    Raises:
        OptionError: one of them cannot be cut out, or makes no whole number of tokens.
    """
    crops = [config.crop] if config.crop_share else []
    crops += [config.plain_crop] if config.plain_share else []
    for crop in crops:
        if crop % factor or not 0 < crop <= smallest:
            raise OptionError(f"a crop of {crop} px is no multiple of {factor}, or larger than the smallest picture")
    return crops


def split_data(
    data: CaptionedImages | None, held_out: CaptionedImages | None, count: int
) -> tuple[CaptionedImages, CaptionedImages]:
    """What to train on, and what to be judged by.

    Args:
        data: None: all generated scenes that are for training.
        held_out: None: scenes of other seeds, or a part of the data.
        count: held-out pictures; of a small set at most a tenth.
    Raises:
        DataError: the data is too little to be split.
    """
    if data is None:
        data = ShapeScenes(shapes.HELD_OUT_SEED)
    if held_out is not None:
        return data, held_out
    if (others := data.others(count)) is not None:
        return data, others
    return hold_out(data, min(count, max(1, len(data) // 10)))
