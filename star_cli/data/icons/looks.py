"""What an icon looks like, measured on its pixels: the box it fills, whether it is pale, the colour one would call it.

Letters: H W pixels.
"""

from __future__ import annotations

import colorsys
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from star_cli.data.icons.fetch import icons_root
from star_cli.data.icons.render import IconRenders

_FORMAT = 2  # of the cached measurements; part of their file's name
_SIDE = 64
_OPAQUE = 200
_DOMINANT = 0.6  # share of the pixels from which a thing is called by a colour
_PALE = 0.86


@dataclass(frozen=True)
class Look:
    """Measured facts of an icon; lengths are shares of its side."""

    left: float
    top: float
    right: float
    bottom: float
    """The box its ink fills."""
    colour: str
    """The colour it has for the most part, broadly named; "" when there is none. Such a ground would hide it."""
    said_colour: str
    """The same where nobody would call it otherwise: captions may say it."""
    is_pale: bool
    """It would be lost on white."""


def measure(image: Image.Image) -> Look:
    """Measure an icon (RGBA, square)."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX) if image.width != _SIDE else image
    pixels = np.asarray(small)  # (H, W, 4), 0..255
    ink = pixels[..., 3] > 24
    rows, columns = np.nonzero(ink)
    if not len(rows):
        return Look(0.0, 0.0, 1.0, 1.0, "", "", is_pale=False)
    fewer = pixels[::2, ::2]
    solid = fewer[fewer[..., 3] >= _OPAQUE][:, :3]
    colours = [
        colorsys.rgb_to_hsv(*(float(part) / 255 for part in pixel))
        for pixel in (solid if len(solid) else pixels[ink][:, :3])
    ]
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    left, top, right, bottom = (round(float(at) / _SIDE, 4) for at in box)
    is_pale = float(np.mean(solid.mean(axis=1) > _PALE * 255)) > 0.5 if len(solid) else False
    broad, narrow = (_dominant([name(*colour) for colour in colours]) for name in (_broad_name, _narrow_name))
    return Look(left, top, right, bottom, broad, narrow, is_pale=is_pale)


def _dominant(names: Sequence[str]) -> str:
    name, count = Counter(names).most_common(1)[0]
    return name if count / len(names) >= _DOMINANT else ""


def looks(
    renders: IconRenders, icons: Sequence[str], on_icon: Callable[[int, int], None] | None = None
) -> dict[str, Look]:
    """The looks of some icons; measured once, then read from the cache."""
    path = icons_root() / f"looks-{_FORMAT}-{renders.icons.fingerprint}.json"
    known = _read(path)
    missing = [icon for icon in icons if icon not in known]
    if missing:
        renders.prepare(missing, _SIDE, on_icon)
        known |= {icon: measure(renders.image(icon, _SIDE)) for icon in missing}
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({icon: asdict(look) for icon, look in known.items()}), encoding="utf-8")
        temporary.replace(path)
    return {icon: known[icon] for icon in icons}


def _read(path: Path) -> dict[str, Look]:
    """Looks that were measured before; none where the file is missing or damaged, so that it is written anew."""
    try:
        return {icon: Look(**facts) for icon, facts in json.loads(path.read_text(encoding="utf-8")).items()}
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        return {}


def _broad_name(hue: float, saturation: float, value: float) -> str:
    """A word for every colour; all 0..1."""
    if value < 0.22:
        return "black"
    if saturation < 0.16:
        return "white" if value > 0.82 else "grey"
    degrees = hue * 360
    if degrees < 18 or degrees >= 340:
        if saturation < 0.5 and value > 0.75:
            return "pink"
        return "red" if value > 0.55 else "brown"
    name = next(name for end, name in _HUES if degrees < end)
    return "brown" if name == "orange" and value < 0.72 else name


_HUES = ((44, "orange"), (68, "yellow"), (168, "green"), (252, "blue"), (292, "purple"), (340, "pink"))

# hue in degrees from 20 below 0, saturation and value in percent: (lowest, highest) each
_CLEAR = {
    "red": ((-14, 12), (62, 100), (66, 100)),
    "orange": ((16, 38), (72, 100), (90, 100)),
    "yellow": ((39, 66), (45, 100), (88, 100)),
    "green": ((75, 168), (35, 100), (30, 100)),
    "blue": ((190, 238), (35, 100), (55, 100)),
    "purple": ((262, 295), (35, 100), (50, 100)),
    "pink": ((310, 340), (30, 80), (80, 100)),
    "brown": ((-14, 34), (22, 75), (25, 62)),
    "grey": ((-20, 340), (0, 16), (35, 80)),
    "black": ((-20, 340), (0, 100), (0, 22)),
}


def _narrow_name(hue: float, saturation: float, value: float) -> str:
    """A word where there is no doubt, else ""."""
    degrees = hue * 360 - (360 if hue * 360 > 340 else 0)
    told = (degrees, 100 * saturation, 100 * value)
    for name, limits in _CLEAR.items():
        if all(low <= part <= high for part, (low, high) in zip(told, limits, strict=True)):
            return name
    return ""
