"""A small training set with all that can be odd about one."""

from __future__ import annotations

import random
from collections.abc import Collection

import torch
from torch import Tensor

from star_cli.data.source import CaptionedImages, Crop
from star_cli.errors import BadImageError, DataError


class Pictures(CaptionedImages):
    """Random pictures with none to three captions; some cannot be read, or their captions cannot."""

    def __init__(self, count: int = 11, unreadable: Collection[int] = (), wordless: Collection[int] = ()):
        self.count, self.unreadable, self.wordless = count, frozenset(unreadable), frozenset(wordless)

    @property
    def fingerprint(self) -> str:
        return f"pictures {self.count}"

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"pictures/{index}.png"

    def captions(self, index: int) -> tuple[str, ...]:
        if index in self.wordless:
            raise BadImageError(f"{self.name(index)}: its captions are no text")
        return tuple(f"caption {number} of {index}: żółw 亀" for number in range(index % 4))

    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        if index in self.unreadable:
            raise BadImageError(f"no picture in {self.name(index)}")
        shift = 100 * rng.randrange(3) if crop == "random" else 0
        generator = torch.Generator().manual_seed(index + shift)
        return torch.rand(3, resolution, resolution, generator=generator) * 2 - 1


class Vanished(Pictures):
    """A training set whose disk goes away."""

    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        raise DataError("the disk is gone", "plug it in")
