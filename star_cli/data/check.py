"""What a set of pictures holds: how many, how large, what captions, and which files cannot be read."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

from star_cli.data.source import CaptionedImages
from star_cli.data.stored import BadFile, StoredImages
from star_cli.errors import BadImageError

OnProgress = Callable[[int, int], None]
"""Told the pictures done and their total."""

_SIDE = 64  # pixels that a picture is read for: JPEGs are decoded at an eighth, yet every byte is looked at
_WINDOW = 1024  # pictures handed to the threads at once
_EXAMPLES = 10


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of some numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None of no numbers."""
        return cls(min(values), median(values), max(values)) if values else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found.

    Sizes are of the pictures that can be read, upright; None where there are none, or of generated scenes, which have
    no size of their own.
    """

    pictures: int
    """Pictures that can be read."""
    width: Spread | None
    height: Spread | None
    aspect: Spread | None
    """Width divided by height."""
    captions: int
    """Of all pictures that can be read together."""
    captions_each: Spread | None
    """Captions of a picture."""
    characters: Spread | None
    """Of a caption."""
    words: Spread | None
    """Of a caption, parted by spaces."""
    uncaptioned: int
    """Pictures without a caption."""
    uncaptioned_examples: tuple[str, ...]
    """Names of the first of them."""
    bad: tuple[BadFile, ...]
    """Files that cannot be used: those met while opening, then pictures in their order."""
    fingerprint: str
    """Of the set."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Looked:
    """One picture."""

    size: tuple[int, int] | None = None
    captions: tuple[str, ...] = ()
    bad: BadFile | None = None


@dataclass
class _Tally:
    """Numbers of all pictures so far."""

    width: array[int] = field(default_factory=lambda: array("q"))
    height: array[int] = field(default_factory=lambda: array("q"))
    aspect: array[float] = field(default_factory=lambda: array("d"))
    captions: array[int] = field(default_factory=lambda: array("q"))
    characters: array[int] = field(default_factory=lambda: array("q"))
    words: array[int] = field(default_factory=lambda: array("q"))
    examples: list[str] = field(default_factory=list)
    bad: list[BadFile] = field(default_factory=list)

    def add(self, looked: _Looked, source: CaptionedImages, index: int) -> None:
        if looked.bad is not None:
            self.bad.append(looked.bad)
            return
        if looked.size is not None:
            width, height = looked.size
            self.width.append(width)
            self.height.append(height)
            self.aspect.append(width / height)
        self.captions.append(len(looked.captions))
        self.characters.extend(map(len, looked.captions))
        self.words.extend(len(caption.split()) for caption in looked.captions)
        if not looked.captions and len(self.examples) < _EXAMPLES:
            self.examples.append(source.name(index))


def check_source(source: CaptionedImages, on_progress: OnProgress | None = None, threads: int | None = None) -> Report:
    """Read every picture and every caption of a set.

    Args:
        source: the set.
        on_progress: told how far it is, from this thread.
        threads: that read; None: one a core, at least two, since reading waits for the disk.
    """
    tally = _Tally()
    if isinstance(source, StoredImages):
        tally.bad += source.problems
    total = len(source)
    threads = threads or max(2, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    try:
        for start in range(0, total, _WINDOW):
            window = range(start, min(start + _WINDOW, total))
            for index, looked in zip(window, pool.map(partial(_look, source), window), strict=True):
                tally.add(looked, source, index)
                if on_progress is not None:
                    on_progress(index + 1, total)
    finally:  # Ctrl-C must not wait for a whole window
        pool.shutdown(cancel_futures=True)
    return Report(
        pictures=len(tally.captions),
        width=Spread.of(tally.width),
        height=Spread.of(tally.height),
        aspect=Spread.of(tally.aspect),
        captions=sum(tally.captions),
        captions_each=Spread.of(tally.captions),
        characters=Spread.of(tally.characters),
        words=Spread.of(tally.words),
        uncaptioned=tally.captions.count(0),
        uncaptioned_examples=tuple(tally.examples),
        bad=tuple(tally.bad),
        fingerprint=source.fingerprint,
    )


def _look(source: CaptionedImages, index: int) -> _Looked:
    try:
        size = None
        if isinstance(source, StoredImages):
            picture = source.picture(index, _SIDE)
            size = (picture.width, picture.height)
        else:
            source.pixels(index, _SIDE, "centre", random.Random(0))
        return _Looked(size, source.captions(index))
    except BadImageError as error:
        return _Looked(bad=BadFile.of(source.name(index), error))
