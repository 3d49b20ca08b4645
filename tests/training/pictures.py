"""A set of pictures in memory, some of which cannot be read."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from torch import Tensor

from star_cli.data.source import CaptionedImages, Crop
from star_cli.errors import BadImageError


class Pictures(CaptionedImages):
    """Random colours, 8 pixels wider than high; picture i is `picture i`."""

    def __init__(self, count: int, broken: Iterable[int] = ()):
        self.count, self.broken = count, frozenset(broken)

    @property
    def fingerprint(self) -> str:
        return f"pictures {self.count}"

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"picture {index}"

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"colours {index}", f"noise {index}")

    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        if index in self.broken:
            raise BadImageError(f"picture {index} is broken")
        wide = torch.rand(3, resolution, resolution + 8, generator=torch.Generator().manual_seed(index)) * 2 - 1
        left = 4 if crop == "centre" else rng.randint(0, 8)
        return wide[:, :, left : left + resolution]
