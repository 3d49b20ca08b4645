"""The pictures of one step, with others in place of those that cannot be read.

Letters: B pictures, R pixels per side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from star_cli.data.source import CaptionedImages, Crop
from star_cli.data.stored import BadFile
from star_cli.errors import BadImageError, DataError

if TYPE_CHECKING:
    from torch import Tensor

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

    pixels, captions, used = [], [], []
    bad: dict[int, BadFile] = {}
    for row in rows:
        own = random.Random(rng.getrandbits(64))
        while True:
            try:
                pixels.append(source.pixels(row, resolution, crop, own))
                captions.append(source.caption(row, own))
            except BadImageError as error:
                del pixels[len(captions) :]
                bad[row] = BadFile.of(source.name(row), error)
                _check_bearable(source, bad, len(rows))
                row = _another(source, bad, own)
            else:
                used.append(row)
                break
    return ReadRows(used, torch.stack(pixels), captions, tuple(bad.values()))


def _another(source: CaptionedImages, bad: dict[int, BadFile], rng: random.Random) -> int:
    while True:
        row = rng.randrange(len(source))
        if row not in bad:
            return row


def _check_bearable(source: CaptionedImages, bad: dict[int, BadFile], batch_size: int) -> None:
    if len(bad) <= max(batch_size // 2, _FEW) and len(bad) < len(source):
        return
    first, *_ = bad.values()
    raise DataError(
        f"too many pictures cannot be read: {len(bad)} for a batch of {batch_size}, first {first.name}: {first.reason}",
        "see what is wrong with the data: `star data check`",
    )
