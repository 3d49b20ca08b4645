"""Scenes to pixels, with Pillow: the same scene and resolution give the same bytes.

Letters: H W pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from star_cli.data.scenes import BACKGROUNDS, SIZES, Scene
from star_cli.data.transforms import image_tensor

if TYPE_CHECKING:
    from torch import Tensor

Outline = list[tuple[float, float]]
_FINER = 8  # a mask is drawn this much larger, then averaged: smooth edges


def render(scene: Scene, resolution: int) -> Image.Image:
    """Draw a scene as an RGB image of `resolution` x `resolution` pixels, with smooth edges."""
    picture = Image.new("RGB", (resolution, resolution), BACKGROUNDS[scene.background])
    for thing in scene.things:
        mask = _mask(thing.shape, thing.size, resolution)
        corner = (round(thing.x * resolution) - mask.width // 2, round(thing.y * resolution) - mask.height // 2)
        picture.paste(BACKGROUNDS[thing.colour], corner, mask)
    return picture


def render_tensor(scene: Scene, resolution: int) -> Tensor:
    """Draw a scene as a tensor (3, H, W), float32, -1..1."""
    return image_tensor(render(scene, resolution))


@lru_cache(maxsize=256)
def _mask(shape: str, size: str, resolution: int) -> Image.Image:
    """How much of each pixel of its box a shape covers, 0..255; even sides, so that it has a centre."""
    radius = SIZES[size] * resolution
    half = math.ceil(radius) + 1
    large = Image.new("L", (2 * half * _FINER, 2 * half * _FINER), 0)
    points = [((half + radius * x) * _FINER, (half + radius * y) * _FINER) for x, y in _outline(shape)]
    ImageDraw.Draw(large).polygon(points, fill=255)
    return large.reduce(_FINER)


def _outline(shape: str) -> Outline:
    """The corners of a shape in a box from -1 to 1, y downwards."""
    return _OUTLINES[shape]


def _circle() -> Outline:
    return [(0.97 * math.cos(math.tau * i / 180), 0.97 * math.sin(math.tau * i / 180)) for i in range(180)]


def _star(points: int = 5, inner: float = 0.43) -> Outline:
    corners = []
    for i in range(2 * points):
        reach, angle = (1.0 if i % 2 == 0 else inner), math.pi * i / points
        corners.append((reach * math.sin(angle), 0.08 - reach * math.cos(angle)))
    return corners


def _heart() -> Outline:
    corners = []
    for i in range(180):
        t = math.tau * i / 180
        height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)  # -17 .. 12
        corners.append((math.sin(t) ** 3, -(height + 2.5) / 16))
    return corners


def _cross() -> Outline:
    arm = 0.33
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners: Outline = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


_OUTLINES: dict[str, Outline] = {
    "circle": _circle(),
    "square": [(-0.87, -0.87), (0.87, -0.87), (0.87, 0.87), (-0.87, 0.87)],
    "triangle": [(0.0, -0.93), (1.0, 0.82), (-1.0, 0.82)],
    "diamond": [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
}
