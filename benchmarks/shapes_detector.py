"""Find coloured shapes in a picture by classical means: it looks at pixels only and knows no model.

The background is read from the border; what differs from it is labelled; each piece is named by its middle colour and
by the template it overlaps best once both have the same centroid and area. Letters: H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from star_cli.data.scenes import BACKGROUNDS, SHAPES, SIZES

Mask = NDArray[np.bool_]
Run = tuple[int, int, int]  # row, first column, column after the last
Numbers = NDArray[np.floating[Any]]

WORKING_SIDE = 256  # every picture is looked at in this size
_BORDER = 6  # pixels of the frame that tell the background
_SAME = 40.0  # RGB distance within which two colours are one; the closest two of the palette are 75 apart
_SMALLEST_AREA = 0.004  # share of the picture; a small star covers 0.011
_LARGEST_AREA = 0.35  # a large square covers 0.14
_CLEAN = 0.7  # share of a piece, or of the border, that must have the colour it is named by
_ALIKE = 0.78  # overlap (IoU) with a template from which a piece has its shape
_ALIKE_STAR = 0.7  # a star has the most edge for its area: the same wobble costs it more
_GRID = 64


@dataclass(frozen=True)
class Found:
    """One thing seen: `colour` or `shape` is None where there is no telling. Lengths are shares of the side, 0..1."""

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    likeness: float
    """Overlap with the best template, 0..1."""


@dataclass(frozen=True)
class Detection:
    """What a picture shows; the things from the largest to the smallest."""

    background: str | None
    things: tuple[Found, ...]


def detect(image: Image.Image) -> Detection:
    """Read background and things from a square picture of any resolution."""
    small = image.convert("RGB").resize((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small.filter(ImageFilter.MedianFilter(3)), dtype=np.float32)  # (H, W, 3), 0..255
    behind, background = _read_background(pixels)
    foreground = np.linalg.norm(pixels - behind, axis=-1) > _SAME
    pieces = sorted(_pieces(foreground, _SMALLEST_AREA * foreground.size), key=lambda piece: -int(piece.sum()))
    return Detection(background, tuple(_read_thing(pixels, piece, behind) for piece in pieces))


def _read_background(pixels: Numbers) -> tuple[Numbers, str | None]:
    inside = np.zeros(pixels.shape[:2], dtype=bool)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = True
    border = pixels[~inside]  # (n, 3)
    middle = np.median(border, axis=0)
    return middle, _name_colour(border, middle)


def _read_thing(pixels: Numbers, piece: Mask, behind: Numbers) -> Found:
    """Name one piece. Its edge is put where the picture is half thing, half background."""
    core = _shrink(piece)
    inside = pixels[core if core.any() else piece]  # (n, 3)
    colour = np.median(inside, axis=0)
    towards = (colour - behind) / max(float(np.sum((colour - behind) ** 2)), 1.0)
    mask = _grow(piece) & ((pixels - behind) @ towards > 0.5)
    mask = mask if mask.any() else piece
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    shape, likeness = _name_shape(mask)
    return Found(
        shape=shape if mask.mean() <= _LARGEST_AREA else None,
        colour=_name_colour(inside, colour),
        size=_name_size(max(bottom - top, right - left) / 2 / WORKING_SIDE),
        x=float(left + right) / 2 / WORKING_SIDE,
        y=float(top + bottom) / 2 / WORKING_SIDE,
        likeness=likeness,
    )


def _name_colour(pixels: Numbers, middle: Numbers) -> str | None:
    """The nearest colour of the palette, if the middle is near it and most pixels (n, 3) are near the middle."""
    if np.mean(np.linalg.norm(pixels - middle, axis=-1) < _SAME) < _CLEAN:
        return None
    distances = {name: float(np.linalg.norm(middle - np.array(rgb))) for name, rgb in BACKGROUNDS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < 1.5 * _SAME else None


def _name_size(radius: float) -> str:
    """The size whose half side is nearest by ratio; shapes fill 0.87 to 1 of their box, so a little is added."""
    return min(SIZES, key=lambda name: abs(np.log(radius / (0.95 * SIZES[name]))))


def _name_shape(mask: Mask) -> tuple[str | None, float]:
    seen = _normalise(mask)
    likeness = {shape: max(_overlap(seen, template) for template in _templates(shape)) for shape in SHAPES}
    best = max(likeness, key=likeness.__getitem__)
    is_alike = likeness[best] >= (_ALIKE_STAR if best == "star" else _ALIKE)
    return (best if is_alike else None), likeness[best]


def _overlap(seen: Mask, template: Mask) -> float:
    """Area in both over area in either (IoU)."""
    return float((seen & template).sum() / (seen | template).sum())


def _normalise(mask: Mask) -> Mask:
    """A mask looked up on a grid around its centroid, in units of the square root of its area: (_GRID, _GRID)."""
    rows, columns = np.nonzero(mask)
    steps = np.linspace(-1.25, 1.25, _GRID) * np.sqrt(len(rows))
    ys, xs = np.rint(rows.mean() + steps).astype(int), np.rint(columns.mean() + steps).astype(int)
    height, width = mask.shape
    visible = ((ys >= 0) & (ys < height))[:, None] & ((xs >= 0) & (xs < width))[None]
    looked_up: Mask = mask[np.ix_(ys.clip(0, height - 1), xs.clip(0, width - 1))] & visible
    return looked_up


@cache
def _templates(shape: str) -> tuple[Mask, ...]:
    """The ideal masks of a shape, each from a formula in x and y (upwards), -1..1."""
    at = (np.arange(400) + 0.5) / 200 - 1
    x, y = 1.1 * at[None, :], -1.1 * at[:, None]
    return tuple(_normalise(test(x, y)) for test in _TESTS[shape])


def _is_star(x: Numbers, y: Numbers) -> Mask:
    """Inside the five-pointed star: in each tenth of the turn a straight edge runs from a tip to a notch."""
    notch, tenth = 0.4, np.pi / 5
    angle = np.abs((np.arctan2(x, y) + tenth) % (2 * tenth) - tenth)  # 0 at a tip, `tenth` at a notch
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    inside: Mask = across * (1 - notch * np.cos(tenth)) <= (1 - along) * notch * np.sin(tenth)
    return inside


def _is_heart(x: Numbers, y: Numbers) -> Mask:
    """Inside the sextic heart curve."""
    x, y = 1.25 * x, 1.25 * y
    inside: Mask = (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
    return inside


def _is_card_heart(x: Numbers, y: Numbers) -> Mask:
    """Inside the heart of playing cards: two discs over a wedge."""
    discs = (abs(x) - 0.47) ** 2 + (y - 0.38) ** 2 <= 0.5**2
    wedge = (y <= 0.38) & (abs(x) <= 0.66 * (y + 1))
    inside: Mask = discs | wedge
    return inside


_TESTS: dict[str, tuple[Callable[[Numbers, Numbers], Mask], ...]] = {
    "circle": (lambda x, y: x**2 + y**2 <= 1,),
    "square": (lambda x, y: np.maximum(abs(x), abs(y)) <= 0.9,),
    "triangle": (lambda x, y: (abs(x) <= (0.9 - y) * 0.55) & (y >= -0.9),),
    "diamond": (lambda x, y: abs(x) / 0.75 + abs(y) <= 1, lambda x, y: abs(x) + abs(y) <= 1),
    "star": (_is_star,),
    "heart": (_is_heart, _is_card_heart),
    "cross": (lambda x, y: (np.minimum(abs(x), abs(y)) <= 1 / 3) & (np.maximum(abs(x), abs(y)) <= 1),),
}


def _pieces(mask: Mask, smallest: float) -> Iterator[Mask]:
    """The connected pieces of a mask (four neighbours) that have at least `smallest` pixels."""
    runs = _runs(mask)
    members: dict[int, list[Run]] = {}
    for run, piece in zip(runs, _join(runs), strict=True):
        members.setdefault(piece, []).append(run)
    for own in members.values():
        if sum(stop - start for _, start, stop in own) >= smallest:
            drawn = np.zeros_like(mask)
            for row, start, stop in own:
                drawn[row, start:stop] = True
            yield drawn


def _join(runs: list[Run]) -> list[int]:
    """The piece of each run: runs that touch, directly or through others, have the same number (union-find)."""
    parents = list(range(len(runs)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    first_above = 0  # runs are sorted: those of the row above that end before this one starts are passed over
    for index, (row, start, stop) in enumerate(runs):
        while runs[first_above][0] < row - 1 or (runs[first_above][0] == row - 1 and runs[first_above][2] <= start):
            first_above += 1
        above = first_above
        while runs[above][0] == row - 1 and runs[above][1] < stop:
            parents[root(above)] = root(index)
            above += 1
    return [root(index) for index in range(len(runs))]


def _runs(mask: Mask) -> list[Run]:
    """Row, start and stop of every horizontal run of a mask, row by row."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    return list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))


def _grow(mask: Mask) -> Mask:
    """A mask two pixels larger on every side."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(5))) > 0


def _shrink(mask: Mask) -> Mask:
    """A mask two pixels smaller on every side: without its blurred edge."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MinFilter(5))) > 0
