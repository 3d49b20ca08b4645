"""What stands behind the things, drawn by us at any resolution: plain colours, gradients, and a few simple landscapes.

A landscape has some variants (where the hills rise, where the stars are), numbered so that each is drawn once and kept.
Lengths are shares of the picture's side; y runs downwards. Letters: R pixels per side.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

PLAIN: dict[str, Colour] = {
    "white": (255, 255, 255),
    "light blue": (182, 220, 250),
    "blue": (58, 122, 226),
    "green": (70, 172, 96),
    "red": (222, 60, 62),
    "yellow": (253, 220, 86),
    "orange": (250, 150, 56),
    "pink": (252, 182, 210),
    "purple": (136, 84, 196),
    "grey": (186, 190, 196),
    "black": (24, 24, 28),
    "brown": (140, 94, 62),
}
# from the top to the bottom
_GRADIENTS: dict[str, tuple[Colour, Colour]] = {
    "blue gradient": ((34, 84, 196), (164, 214, 252)),
    "pink gradient": ((232, 84, 150), (254, 216, 226)),
    "purple gradient": ((92, 48, 166), (222, 190, 246)),
    "green gradient": ((24, 128, 88), (196, 238, 184)),
    "orange gradient": ((240, 104, 40), (255, 222, 150)),
    "grey gradient": ((104, 110, 122), (232, 234, 238)),
}
FLAT = (*PLAIN, *_GRADIENTS)
LANDSCAPES = ("sky", "night", "sunset", "grass", "snow", "sea", "sand", "wood")
BACKGROUNDS = (*FLAT, *LANDSCAPES)
GROUNDED = ("grass", "snow", "sand", "sea")
"""Those with something to stand or swim on, below the horizon."""
VARIANTS = 12
"""Different drawings of a landscape; the others have one."""

_FINER = 2  # landscapes are drawn this much larger, then averaged: smooth edges
_KEPT = 160


@lru_cache(_KEPT)
def background(name: str, variant: int, resolution: int) -> Image.Image:
    """A background, RGB, R x R; not to be changed by the caller.

    Args:
        name: one of `BACKGROUNDS`.
        variant: which drawing of it, 0 to `VARIANTS` - 1.
        resolution: R.
    """
    if name in PLAIN:
        return Image.new("RGB", (resolution, resolution), PLAIN[name])
    if name in _GRADIENTS:
        return _ramp(*_GRADIENTS[name], resolution)
    large = _DRAWN[name](random.Random(f"{name} {variant}"), _FINER * resolution)
    return large.reduce(_FINER)


def _ramp(top: Colour, bottom: Colour, side: int, begin: float = 0.0, end: float = 1.0) -> Image.Image:
    """A picture that goes from one colour at `begin` to the other at `end`."""
    at = ((np.arange(side) + 0.5) / side - begin) / max(end - begin, 1e-6)
    share = np.clip(at, 0, 1)[:, None, None]
    rows = np.array(top) * (1 - share) + np.array(bottom) * share  # (R, 1, 3)
    return Image.fromarray(np.broadcast_to(np.rint(rows), (side, side, 3)).astype(np.uint8))


def _hill(rng: random.Random, side: int, height: float, swing: float) -> list[tuple[float, float]]:
    """The outline of ground that begins at `height` and rolls by `swing`, as a polygon down to the lower edge."""
    waves = [(rng.uniform(0.6, 1.6), rng.uniform(0, math.tau)) for _ in range(2)]
    points = []
    for step in range(49):
        x = step / 48
        rise = sum(math.sin(math.tau * often * x + shift) for often, shift in waves) / 2
        points.append((x * side, (height + swing * rise) * side))
    return [*points, (side, side), (0, side)]


def _fill(picture: Image.Image, outline: list[tuple[float, float]], filling: Image.Image) -> None:
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    picture.paste(filling, (0, 0), mask)


def _clouds(rng: random.Random, picture: Image.Image, count: int, lowest: float) -> None:
    """Soft white heaps, each some overlapping discs above a flat base."""
    side = picture.width
    mask = Image.new("L", (512, 512))  # clouds are soft: one size of mask serves all resolutions
    pen = ImageDraw.Draw(mask)
    for number in range(count):
        x, y = (number + rng.uniform(0.2, 0.8)) / count * 512, rng.uniform(0.06, lowest) * 512
        size = rng.uniform(28, 44)
        for dx, dy, radius in ((-1.1, 0.15, 0.6), (-0.35, -0.25, 0.85), (0.5, -0.1, 0.75), (1.2, 0.2, 0.5)):
            centre_x, centre_y, r = x + dx * size, y + dy * size, radius * size
            pen.ellipse((centre_x - r, centre_y - r, centre_x + r, centre_y + r), fill=215)
    soft = mask.reduce(4).resize((side, side), Image.Resampling.BICUBIC)
    picture.paste((255, 255, 255), (0, 0), soft)


def _sky(rng: random.Random, side: int) -> Image.Image:
    picture = _ramp((70, 158, 240), (200, 232, 254), side)
    _clouds(rng, picture, 3, 0.9)
    return picture


def _night(rng: random.Random, side: int) -> Image.Image:
    picture = _ramp((10, 14, 48), (48, 56, 122), side)
    pen = ImageDraw.Draw(picture)
    for _ in range(34):
        x, y, radius = rng.random() * side, rng.random() * side, rng.choice((0.004, 0.004, 0.006, 0.009)) * side
        light = rng.randint(190, 255)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(light, light, min(255, light + 12)))
    return picture


def _sunset(rng: random.Random, side: int) -> Image.Image:
    picture = _ramp((88, 64, 150), (250, 132, 92), side, 0.0, 0.62)
    _fill(
        picture,
        [(0, 0.55 * side), (side, 0.55 * side), (side, side), (0, side)],
        _ramp((250, 132, 92), (255, 206, 112), side, 0.55, 0.88),
    )
    _fill(picture, _hill(rng, side, 0.86, 0.03), _ramp((92, 58, 104), (58, 38, 82), side, 0.8, 1.0))
    return picture


def _grass(rng: random.Random, side: int) -> Image.Image:
    picture = _ramp((112, 190, 246), (216, 240, 255), side, 0.0, 0.6)
    _clouds(rng, picture, 2, 0.3)
    _fill(picture, _hill(rng, side, 0.58, 0.04), _ramp((126, 200, 92), (96, 180, 76), side, 0.5, 0.8))
    _fill(picture, _hill(rng, side, 0.66, 0.03), _ramp((104, 190, 78), (58, 146, 58), side, 0.6, 1.0))
    pen = ImageDraw.Draw(picture)
    for _ in range(28):
        x, y = rng.random() * side, rng.uniform(0.74, 1.0) * side
        size = (0.008 + 0.016 * (y / side - 0.7)) * side
        for lean in (-0.7, 0.0, 0.7):
            pen.polygon([(x - 0.3 * size, y), (x + 0.3 * size, y), (x + lean * size, y - 2 * size)], fill=(44, 128, 52))
    return picture


def _snow(rng: random.Random, side: int) -> Image.Image:
    picture = _ramp((150, 186, 222), (214, 230, 246), side, 0.0, 0.6)
    _fill(picture, _hill(rng, side, 0.58, 0.05), _ramp((226, 236, 250), (204, 220, 242), side, 0.5, 0.75))
    _fill(picture, _hill(rng, side, 0.67, 0.03), _ramp((250, 252, 255), (218, 230, 246), side, 0.62, 1.0))
    pen = ImageDraw.Draw(picture)
    for _ in range(36):
        x, y, radius = rng.random() * side, rng.uniform(0, 0.64) * side, rng.choice((0.006, 0.008, 0.011)) * side
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 255, 255))
    return picture


def _sea(rng: random.Random, side: int) -> Image.Image:
    picture = _ramp((104, 186, 246), (222, 242, 255), side, 0.0, 0.55)
    _clouds(rng, picture, 2, 0.28)
    flat = [(0.0, 0.55 * side), (side, 0.55 * side), (side, side), (0, side)]
    _fill(picture, flat, _ramp((58, 148, 214), (14, 78, 156), side, 0.55, 1.0))
    pen = ImageDraw.Draw(picture)
    for row in range(9):
        y = 0.585 + 0.42 * (row / 9) ** 1.3
        for _ in range(5 - row // 3):
            x, length = rng.random(), (0.03 + 0.05 * row / 9) * rng.uniform(0.8, 1.4)
            thick = (0.004 + 0.006 * row / 9) * side
            box = ((x - length) * side, y * side - thick / 2, (x + length) * side, y * side + thick / 2)
            pen.rounded_rectangle(box, radius=thick / 2, fill=(124, 194, 238))
    return picture


def _sand(rng: random.Random, side: int) -> Image.Image:
    picture = _ramp((120, 196, 240), (250, 236, 208), side, 0.0, 0.6)
    _fill(picture, _hill(rng, side, 0.57, 0.06), _ramp((240, 206, 142), (228, 184, 116), side, 0.5, 0.8))
    _fill(picture, _hill(rng, side, 0.67, 0.04), _ramp((248, 220, 156), (218, 170, 102), side, 0.62, 1.0))
    return picture


def _wood(rng: random.Random, side: int) -> Image.Image:
    """Five horizontal boards with a fine grain."""
    grain: NDArray[np.float64] = np.random.default_rng(rng.getrandbits(32)).normal(size=(80, 3))
    lines = np.asarray(
        Image.fromarray((128 + 40 * grain).clip(0, 255).astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        ),
        dtype=np.float64,
    )
    boards = np.array([rng.uniform(-12, 12) for _ in range(5)])[np.arange(side) * 5 // side]  # (R,)
    shade = boards[:, None] + (lines - 128) * 0.16
    pixels = np.array((186, 128, 78)) + shade[..., None]
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for board in range(5):
        pen.rectangle((0, board * side / 5 - 0.005 * side, side, board * side / 5 + 0.005 * side), fill=(122, 78, 44))
    return picture


_DRAWN: dict[str, Callable[[random.Random, int], Image.Image]] = {
    "sky": _sky,
    "night": _night,
    "sunset": _sunset,
    "grass": _grass,
    "snow": _snow,
    "sea": _sea,
    "sand": _sand,
    "wood": _wood,
}
