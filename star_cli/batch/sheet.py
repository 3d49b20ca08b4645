"""Contact sheets: pictures small in a grid, each with its prompt and seed below."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from star_cli.errors import OptionError, RecipeError
from star_cli.images import FORMATS, format_of, read_recipe, write_whole
from star_cli.names import subject_of

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

MOST = 10_000
"""Pictures on one sheet."""
_GAP, _LINES, _TEXT = 8, 3, 13
"""Pixels between pictures, lines of a caption, pixels of its letters."""
_LINE = _TEXT + 3
_LONGEST = {"webp": 16_383, "jpeg": 65_500}
"""Most pixels a side that a format takes; PNG takes any sheet."""
_MARK, _SOFTWARE = "star sheet", 0x0131
"""What a sheet's Exif data name as the program that made it."""
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (225, 225, 225)


@dataclass(frozen=True)
class Layout:
    """How a sheet looks.

    Raises:
        OptionError: a number out of range.
    """

    columns: int | None = None
    """None for about as many as rows."""
    cell: int = 192
    """Pixels of a picture's side."""
    captions: bool = True

    def __post_init__(self) -> None:
        if self.columns is not None and self.columns < 1:
            raise OptionError(f"--columns must be a whole number of at least 1, not {self.columns}")
        if not 16 <= self.cell <= 2048:
            raise OptionError(f"--cell must be a whole number from 16 to 2048, not {self.cell}")

    @property
    def height(self) -> int:
        """Pixels of a picture and its caption."""
        return self.cell + (_LINES * _LINE + 4 if self.captions else 0)


def find_pictures(places: Sequence[Path]) -> list[Path]:
    """Pictures among these paths and inside these folders, a folder's in the order of their names.

    Raises:
        OptionError: a path that is not there, no picture at all, or too many.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = (path for path in place.rglob("*") if not _is_hidden(path.relative_to(place)))
            found += sorted(path for path in inside if path.suffix.lower() in FORMATS and path.is_file())
        elif place.is_file():
            found.append(place)
        else:
            raise OptionError(f"{place}: no such file or folder", "give a folder of pictures")
    check_count(len(found))
    return found


def check_count(pictures: int) -> None:
    """Can so many be on a sheet?

    Raises:
        OptionError: none, or too many.
    """
    if not pictures:
        raise OptionError("there are no pictures for the sheet", "give a folder of pictures")
    if pictures > MOST:
        raise OptionError(f"a sheet takes at most {MOST:,} pictures, not {pictures:,}", "make several")


def size_of(count: int, layout: Layout) -> tuple[int, int, int]:
    """Columns, and width and height in pixels, of a sheet of so many pictures."""
    columns = min(layout.columns or math.ceil(math.sqrt(count)), count)
    width = columns * (layout.cell + _GAP) + _GAP
    return columns, width, math.ceil(count / columns) * (layout.height + _GAP) + _GAP


def check_size(count: int, layout: Layout, out: Path) -> None:
    """Does the file's format take a sheet of so many pictures?

    Raises:
        OutputPathError: an unknown suffix.
        OptionError: it does not.
    """
    format = format_of(out)  # noqa: A001
    _, *sides = size_of(count, layout)
    if max(sides) > _LONGEST.get(format, max(sides)):
        raise OptionError(
            f"a {format} is at most {_LONGEST[format]:,} pixels a side, this sheet is {sides[0]:,} x {sides[1]:,}",
            "name the file like sheet.png, or make the sheet of fewer pictures",
        )


def is_sheet(path: Path) -> bool:
    """Is this file a contact sheet that star made?"""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return bool(picture.getexif().get(_SOFTWARE) == _MARK)
    except Exception:  # Pillow's readers meet damaged files with errors of any kind
        return False


def write_sheet(
    pictures: Sequence[Path], out: Path, layout: Layout, overwrite: bool = False
) -> list[tuple[Path, Exception]]:
    """Draw a sheet and write it, whole or not at all.

    Args:
        pictures: in reading order.
        out: the file.
        layout: how it looks.
        overwrite: replace a file that is already there.
    Returns:
        Pictures that could not be read, and why; their places stay empty.
    Raises:
        OutputPathError: an unknown suffix, or a file that exists.
        OutputError: writing failed.
        OptionError: no picture, too many, or more than the format has room for.
    """
    from PIL import Image

    format = format_of(out)  # noqa: A001
    check_count(len(pictures))
    check_size(len(pictures), layout, out)
    sheet, unread = draw_sheet(pictures, layout)
    exif = Image.Exif()
    exif[_SOFTWARE] = _MARK
    buffer = io.BytesIO()
    # quality and lossless are each heeded where they have a meaning
    sheet.save(buffer, format.upper(), quality=92, lossless=format == "webp", exif=exif)
    write_whole(out, buffer.getvalue(), overwrite=overwrite)
    return unread


def draw_sheet(pictures: Sequence[Path], layout: Layout) -> tuple[Image.Image, list[tuple[Path, Exception]]]:
    """The sheet, and the pictures that could not be read."""
    from PIL import Image, ImageDraw, ImageFont

    columns, width, height = size_of(len(pictures), layout)
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    unread: list[tuple[Path, Exception]] = []
    for place, path in enumerate(pictures):
        left = _GAP + place % columns * (layout.cell + _GAP)
        top = _GAP + place // columns * (layout.height + _GAP)
        try:
            with Image.open(path) as picture:
                small = picture.convert("RGB")
                small.thumbnail((layout.cell, layout.cell))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            unread.append((path, error))
            pen.rectangle((left, top, left + layout.cell - 1, top + layout.cell - 1), outline=_FAINT)
            continue
        sheet.paste(small, (left + (layout.cell - small.width) // 2, top + (layout.cell - small.height) // 2))
        if layout.captions:
            for number, words in enumerate(_caption(path, pen, font, layout.cell)):
                pen.text((left, top + layout.cell + 4 + number * _LINE), words, fill=_INK, font=font)
    return sheet, unread


def _caption(path: Path, pen: ImageDraw.ImageDraw, font: Font, width: int) -> list[str]:
    """Prompt and seed, or the file's name, in lines that fit."""
    try:
        recipe = read_recipe(path)
        words, end = subject_of(recipe), f" #{recipe['seed']}"
    except (RecipeError, KeyError):
        words, end = path.name, ""
    lines = list(_wrapped(" ".join(words.split())[:500] + end, pen, font, width))
    if len(lines) > _LINES:
        last = lines[_LINES - 1]
        while last and pen.textlength(f"{last}...{end}", font=font) > width:
            last = last[:-1]
        lines = [*lines[: _LINES - 1], f"{last.rstrip()}...{end}"]
    return lines


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: Font, width: int) -> Iterator[str]:
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if pen.textlength(longer, font=font) <= width:
            line = longer
            continue
        if line:
            yield line
        while len(word) > 1 and pen.textlength(word, font=font) > width:
            fits = max(1, int(len(word) * width / pen.textlength(word, font=font)))
            yield word[:fits]
            word = word[fits:]
        line = word
    if line:
        yield line


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
