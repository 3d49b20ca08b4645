"""What all sets of picture files share, wherever the files lie: folder, shards, hub."""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from star_cli.data.source import CaptionedImages, Crop
from star_cli.data.transforms import Picture, read_picture, to_square
from star_cli.errors import BadImageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be used."""

    name: str
    reason: str

    @classmethod
    def of(cls, name: str, error: BadImageError) -> BadFile:
        """What an error says of a picture, whose name it begins with."""
        return cls(name, str(error).removeprefix(f"{name}: "))


class StoredImages(CaptionedImages):
    """Pictures that are files with a size of their own."""

    problems: tuple[BadFile, ...] = ()
    """What opening the set met and left out: members of a shard that are cut off, doubled or without a picture."""

    _fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Of names, sizes in bytes and captions; not of where the files lie. Worked out once: it reads all captions."""
        if self._fingerprint is None:
            told = hashlib.sha256()
            for index in range(len(self)):
                told.update(repr(self._identity(index)).encode())
            self._fingerprint = told.hexdigest()[:16]
        return self._fingerprint

    @abstractmethod
    def _identity(self, index: int) -> tuple[object, ...]:
        """Name, size in bytes and captions of a picture, as plain data; must not raise `BadImageError`."""

    @abstractmethod
    def _open(self, index: int) -> Path | BinaryIO:
        """The file of a picture: its path, or its bytes as an open file.

        Raises:
            BadImageError: its bytes cannot be had.
        """

    def picture(self, index: int, shorter: int) -> Picture:
        """Decode a picture; see `read_picture`.

        Raises:
            BadImageError: it cannot be read.
        """
        return read_picture(self._open(index), self.name(index), shorter)

    def pixels(self, index: int, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
        """A picture as a square; see `CaptionedImages.pixels`."""
        return to_square(self.picture(index, resolution).image, resolution, crop, rng)
