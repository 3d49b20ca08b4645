"""Scenes of icons to pixels: the same scene and resolution give the same bytes.

Letters: R pixels per side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from star_cli.data.icons.backgrounds import GROUNDED, background
from star_cli.data.icons.catalogue import Catalogue, IconObject
from star_cli.data.icons.layout import IconScene, Item
from star_cli.data.icons.render import master_size

if TYPE_CHECKING:
    from torch import Tensor

_SHADOWED = ("grass", "snow", "sand", "wood")
_SHADOW = 64  # pixels of the shadow's only drawing; it is soft


def compose(catalogue: Catalogue, scene: IconScene, resolution: int) -> Image.Image:
    """Draw a scene as an RGB image, R x R."""
    picture = background(scene.background, scene.variant, resolution).copy()
    master = master_size(resolution)  # the same for small things, so that one render of each icon serves all
    for item in scene.items:
        thing = catalogue.by_key[item.key]
        if scene.background in GROUNDED and scene.background in _SHADOWED and thing.stance != "sky":
            _cast_shadow(picture, thing, item)
        side = max(1, round(item.side * resolution))
        icon = catalogue.renders.image(thing.icon, side, item.is_flipped, item.angle, master)
        corner = (round(item.x * resolution - side / 2), round(item.y * resolution - side / 2))
        picture.paste(icon, corner, icon)
    return picture


def compose_tensor(catalogue: Catalogue, scene: IconScene, resolution: int) -> Tensor:
    """Draw a scene as a tensor (3, R, R), float32, -1..1."""
    import torch

    pixels = torch.from_numpy(np.array(compose(catalogue, scene, resolution))).permute(2, 0, 1)  # (3, R, R), 0..255
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def _cast_shadow(picture: Image.Image, thing: IconObject, item: Item) -> None:
    """A soft ellipse where the thing touches the ground."""
    width = (thing.look.right - thing.look.left) * item.side * 0.95
    centre = item.x + ((thing.look.left + thing.look.right) / 2 - 0.5) * item.side * (-1 if item.is_flipped else 1)
    floor = item.y + (thing.look.bottom - 0.5) * item.side - 0.012
    size = (max(2, round(width * picture.width)), max(2, round(width * 0.22 * picture.width)))
    mask = _shadow(size)
    corner = (round(centre * picture.width - size[0] / 2), round(floor * picture.width - size[1] / 2))
    picture.paste((24, 32, 40), corner, mask)


@lru_cache(256)
def _shadow(size: tuple[int, int]) -> Image.Image:
    return _soft_disc().resize(size, Image.Resampling.BILINEAR)


@lru_cache(1)
def _soft_disc() -> Image.Image:
    disc = Image.new("L", (_SHADOW, _SHADOW))
    ImageDraw.Draw(disc).ellipse((6, 6, _SHADOW - 7, _SHADOW - 7), fill=96)
    return disc.filter(ImageFilter.GaussianBlur(5))
