"""Picture files to squares of pixels: decoded, upright, RGB, resized, cropped.

Colour profiles are not applied; of an animation the first frame counts. Letters: R H W pixels.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from star_cli.errors import BadImageError

if TYPE_CHECKING:
    from torch import Tensor

    from star_cli.data.source import Crop

_COMMON = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")
_RARE = (".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".avif", ".jp2")
SUFFIXES = frozenset((*_COMMON, *_RARE))
"""Suffixes of files that are taken for pictures, in lower case."""

# Not all that Pillow knows: some readers start other programs (EPS), and data from anywhere must not reach them.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_FINER = 2  # a JPEG is decoded at a half, a quarter or an eighth while it stays this much larger than the square
_ORIENTATION = 0x0112  # tag and values: Exif 2.3
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Picture:
    """A decoded picture."""

    image: Image.Image
    """RGB and upright; smaller than the file says where a JPEG was decoded at a part of its size."""
    width: int
    """Of the file, upright."""
    height: int
    """Of the file, upright."""


def read_picture(file: Path | BinaryIO, name: str, shorter: int) -> Picture:
    """Decode a picture file.

    Args:
        file: its path, or its bytes as an open file.
        name: what to call it in an error.
        shorter: pixels that the shorter side will be resized to; a large JPEG is decoded no larger than this needs.
    Raises:
        BadImageError: missing, truncated, damaged, of an unknown format, or so large that it must be a trap.
    """
    try:
        with _hushed(), Image.open(file, formats=_formats()) as opened:
            size = opened.size
            opened.draft(None, (_FINER * shorter, _FINER * shorter))
            image = _to_rgb(opened)
            orientation = _orientation(opened)  # not before: loading turns a TIFF, and takes the mark off
            size = size if orientation not in _SIDEWAYS else size[::-1]
            turn = _UPRIGHT.get(orientation)
            return Picture(image if turn is None else image.transpose(turn), *size)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(f"{name}: not a picture that can be read") from error
    except OSError as error:
        raise BadImageError(f"{name}: {error.strerror or error}") from error
    except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
        raise BadImageError(f"{name}: {str(error) or type(error).__name__}") from error


def to_square(image: Image.Image, resolution: int, crop: Crop, rng: random.Random) -> Tensor:
    """Resize the shorter side to R, antialiased, and take a square of the longer one.

    Args:
        image: RGB.
        resolution: R.
        crop: where the square is taken.
        rng: decides a random crop; always asked for one number, so that a stream of crops does not depend on shapes.
    Returns:
        (3, R, R), float32, -1..1.
    """
    share = rng.random() if crop == "random" else 0.5
    side = min(image.size)
    left, top = ((length - side) * share for length in image.size)
    # One pass: the filter reaches beyond the box where the picture goes on, as if all of it had been resized first.
    box = (left, top, left + side, top + side)
    return image_tensor(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box))


def image_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W), float32, -1..1."""
    import torch

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), 0..255
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def _orientation(image: Image.Image) -> int:
    """As the Exif data has it; damaged Exif data says nothing, and nothing against the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Whatever a file holds as RGB; what shines through is white."""
    if image.mode.startswith("I"):
        return _from_16_bits(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, whose range nobody knows")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 0..65535 as grey of 0..255: Pillow's own conversion would cut everything above 255 off."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixels are whole numbers beyond 16 bits, whose range nobody knows")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Of the formats that are read, those this Pillow was built with."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


class _Hush:
    """Silences warnings while any thread is inside.

    `warnings.catch_warnings` alone leaves the filters of the wrong thread behind when two overlap.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.caught = threading.Lock(), 0, warnings.catch_warnings(action="ignore")

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.caught = warnings.catch_warnings(action="ignore")
                self.caught.__enter__()
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.caught.__exit__(None, None, None)


_HUSH = _Hush()


@contextmanager
def _hushed() -> Iterator[None]:
    """Pillow warns of large pictures and odd metadata, which training can do nothing about."""
    _HUSH.enter()
    try:
        yield
    finally:
        _HUSH.leave()
