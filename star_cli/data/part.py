"""A part of a set of pictures, such as the one that training keeps aside to be judged by."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from torch import Tensor

from star_cli.data.source import CaptionedImages, Crop
from star_cli.errors import DataError


class Part(CaptionedImages):
    """Some pictures of another set, in the order given."""

    def __init__(self, whole: CaptionedImages, indices: Sequence[int]):
        self.whole, self.indices = whole, indices

    @property
    def fingerprint(self) -> str:
        """Of the whole set, and of which pictures are in the part."""
        chosen = hashlib.sha256(repr(list(self.indices)).encode()).hexdigest()[:12]
        return f"{self.whole.fingerprint} part {chosen}"

    def __len__(self) -> int:
        """Number of pictures in the part."""
        return len(self.indices)

    def name(self, index: int) -> str:
        """As the whole set calls it."""
        return self.whole.name(self.indices[index])

    def captions(self, index: int) -> tuple[str, ...]:
        """As the whole set has them."""
        return self.whole.captions(self.indices[index])

    def caption(self, index: int, rng: random.Random) -> str:
        """As the whole set gives it."""
        return self.whole.caption(self.indices[index], rng)

    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        """As the whole set gives them."""
        return self.whole.pixels(self.indices[index], resolution, crop, rng)


def hold_out(pictures: CaptionedImages, count: int) -> tuple[CaptionedImages, CaptionedImages]:
    """Split a set: what to train on, and `count` pictures evenly spread over it that training does not see.

    Raises:
        DataError: nothing would be left to train on.
    """
    known = len(pictures)
    if known <= count:
        raise DataError(
            f"a set of {known} pictures cannot hold {count} of them out",
            "give more pictures, or a held-out set of its own",
        )
    held = [index * known // count for index in range(count)]
    taken = set(held)
    return Part(pictures, [index for index in range(known) if index not in taken]), Part(pictures, held)
