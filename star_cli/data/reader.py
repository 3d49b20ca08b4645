"""The pictures of one step, and others in place of those that cannot be read.

Letters: B pictures, R pixels per side.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from star_cli.data.source import CaptionedImages, Crop
from star_cli.data.stored import BadFile
from star_cli.errors import BadImageError, DataError

if TYPE_CHECKING:
    from torch import Tensor

Read = TypeVar("Read")
UNREADABLE_IN_A_ROW = 1000
"""After so many pictures that cannot be read, one after another, the source is taken to be gone."""
_FEW = 2  # bad pictures that even the smallest batch bears


@dataclass(frozen=True)
class ReadRows:
    """What a step learns from."""

    rows: list[int]
    """The pictures that were read, in the order of the batch; a replacement stands where the bad one would."""
    pixels: Tensor
    """(B, 3, R, R), float32, -1..1."""
    captions: list[str]
    """One a picture; "" where it has none."""
    skipped: tuple[BadFile, ...]
    """Pictures that could not be read, for the loop to count and name."""


def read_rows(
    source: CaptionedImages, rows: Sequence[int], resolution: int, crop: Crop, rng: random.Random
) -> ReadRows:
    """Read the pictures of one step.

    A picture that cannot be read is replaced by one that `rng` draws from the whole set: the same one whenever the step
    is run. Each place of the batch has random numbers of its own, so a bad picture changes nothing beside itself.

    Args:
        source: the pictures.
        rows: which of them.
        resolution: R.
        crop: where the squares are taken.
        rng: of this step; decides crops, captions and replacements.
    Raises:
        DataError: more than half of the batch is bad (and more than two pictures), or all of the set.
    """
    import torch

    used, pixels, captions = [], [], []
    bad: dict[int, BadFile] = {}

    def refuse(index: int, error: BadImageError) -> None:
        bad[index] = BadFile.of(source.name(index), error)
        _check_bearable(source, bad, len(rows))

    def read(index: int) -> tuple[Tensor, str]:
        return source.pixels(index, resolution, crop, own), source.caption(index, own)

    for row in rows:
        own = random.Random(rng.getrandbits(64))
        others = (index for index in any_other(source, own) if index not in bad)
        index, (picture, caption) = first_readable(chain([row], others), read, refuse)
        used.append(index)
        pixels.append(picture)
        captions.append(caption)
    return ReadRows(used, torch.stack(pixels), captions, tuple(bad.values()))


def first_readable(
    candidates: Iterable[int], read: Callable[[int], Read], refuse: Callable[[int, BadImageError], None]
) -> tuple[int, Read]:
    """The first picture that can be read, and what was read of it.

    Args:
        candidates: the picture wanted, then those that may stand in for it; at most 1,000 are tried.
        read: reads one.
        refuse: told of each that cannot be read, and why.
    Raises:
        DataError: none can be read.
    """
    count, reason = 0, ""
    for index in islice(candidates, UNREADABLE_IN_A_ROW):
        try:
            return index, read(index)
        except BadImageError as error:
            refuse(index, error)
            count, reason = count + 1, str(error)
    raise DataError(f"{count:,} pictures in a row cannot be read; the last: {reason}", "see `star data check`")


def any_other(source: CaptionedImages, rng: random.Random) -> Iterator[int]:
    """Pictures of the whole set, by chance, without end."""
    while True:
        yield rng.randrange(len(source))


def _check_bearable(source: CaptionedImages, bad: dict[int, BadFile], batch_size: int) -> None:
    if len(bad) <= max(batch_size // 2, _FEW) and len(bad) < len(source):
        return
    first, *_ = bad.values()
    raise DataError(
        f"too many pictures cannot be read: {len(bad)} for a batch of {batch_size}, first {first.name}: {first.reason}",
        "see what is wrong with the data: `star data check`",
    )
