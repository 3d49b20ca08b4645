"""Scenes of icons as files: a folder of pictures with captions, or one sheet to look at."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from star_cli.data.folder import METADATA
from star_cli.data.icons.compose import compose
from star_cli.data.icons.source import IconScenes
from star_cli.data.place import check_new_folder
from star_cli.errors import OutputPathError
from star_cli.images import check_target, write_whole

_MARGIN = 6


def write_scenes(
    source: IconScenes, folder: Path, resolution: int, on_picture: Callable[[int, int], None] | None = None
) -> Path:
    """Write every scene as PNG, with `metadata.jsonl`: file name, caption, and what the picture shows.

    `metadata.jsonl` comes first and names every picture, so that an interrupted folder tells what it lacks.

    Args:
        source: the scenes.
        folder: see `check_new_folder`; made when missing.
        resolution: pixels per side.
        on_picture: called with pictures written and their number.
    Returns:
        The folder.
    Raises:
        OutputPathError: see `check_new_folder`.
        OutputError: writing failed. What was written is whole.
    """
    check_new_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(5, len(str(len(source) - 1)))
    names = [f"{index:0{digits}}.png" for index in range(len(source))]
    # first: pictures without their captions would be learnt as such, while missing pictures are named by whoever reads
    lines = [json.dumps({"file_name": name, **facts(source, index)}) for index, name in enumerate(names)]
    write_whole(folder / METADATA, ("\n".join(lines) + "\n").encode())
    for index, name in enumerate(names):
        write_whole(folder / name, _png(compose(source.catalogue, source.scene(index), resolution)))
        if on_picture is not None:
            on_picture(index + 1, len(source))
    return folder


def check_sheet(path: Path) -> None:
    """Could a sheet be written there?

    Raises:
        OutputPathError: the name is not that of a PNG file, the file exists, or its folder does not.
    """
    if path.suffix.lower() != ".png":
        raise OutputPathError(f"{path}: a sheet is a PNG file", f"call it {path.stem or 'scenes'}.png")
    if os.path.lexists(path):
        raise OutputPathError(f"{path} exists", "give another name")
    check_target(path)


def facts(source: IconScenes, index: int) -> dict[str, Any]:
    """Caption and content of a scene as plain data."""
    shown = source.scene(index)
    return {
        "text": source.captions(index)[0],
        "seed": source.first_seed + index,
        "objects": shown.counts,
        "background": shown.background,
        "relation": shown.relation,
    }


def write_sheet(source: IconScenes, path: Path) -> None:
    """Write a contact sheet as PNG.

    Raises:
        OutputPathError: see `check_sheet`.
    """
    check_sheet(path)
    write_whole(path, _png(contact_sheet(source)))


def contact_sheet(source: IconScenes, count: int = 64, columns: int = 8, side: int = 192) -> Image.Image:
    """The first scenes in rows, each with its caption below."""
    count = min(count, len(source))
    font = ImageFont.load_default(11)
    below = 3 * 14
    sheet = Image.new("RGB", (columns * (side + _MARGIN), -(-count // columns) * (side + below + _MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(count):
        x, y = index % columns * (side + _MARGIN), index // columns * (side + below + _MARGIN)
        sheet.paste(compose(source.catalogue, source.scene(index), side), (x, y))
        for row, line in enumerate(_wrap(source.captions(index)[0], font, side)[:3]):
            pen.text((x, y + side + 14 * row), line, fill="black", font=font)
    return sheet


def _wrap(words: str, font: Any, width: int) -> list[str]:
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
