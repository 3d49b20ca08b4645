"""Scenes of icons as files: a folder of pictures with captions, or one sheet to look at."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from star_cli.data.icons.compose import compose
from star_cli.data.icons.source import IconScenes
from star_cli.errors import OutputPathError
from star_cli.images import check_target, check_writable, write_whole

METADATA = "metadata.jsonl"
_MARGIN = 6


def write_scenes(
    source: IconScenes, folder: Path, resolution: int, on_picture: Callable[[int, int], None] | None = None
) -> Path:
    """Write every scene as PNG, with `metadata.jsonl`: file name, caption, and what the picture shows.

    Args:
        source: the scenes.
        folder: see `check_folder`; made when missing.
        resolution: pixels per side.
        on_picture: called with pictures written and their number.
    Returns:
        The folder.
    Raises:
        OutputPathError: see `check_folder`.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(5, len(str(len(source) - 1)))
    lines = []
    for index in range(len(source)):
        name = f"{index:0{digits}}.png"
        write_whole(folder / name, _png(compose(source.catalogue, source.scene(index), resolution)))
        lines.append(json.dumps({"file_name": name, **facts(source, index)}))
        if on_picture is not None:
            on_picture(index + 1, len(source))
    write_whole(folder / METADATA, ("\n".join(lines) + "\n").encode())
    return folder


def check_folder(folder: Path) -> None:
    """Could scenes be written there? They need a folder of their own: nothing of the user's is replaced or mixed in.

    Raises:
        OutputPathError: it is a file, lies below one, or holds anything but hidden files.
    """
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise OutputPathError(f"{there} is not a folder", "give another folder, or one that is not there yet")
        taken = there == folder and any(not path.name.startswith(".") for path in folder.iterdir())
    except OSError as error:
        raise OutputPathError(f"{folder}: {error.strerror or error}") from error
    check_writable(there)
    if taken:
        raise OutputPathError(f"{folder} holds files already", "give an empty folder, or one that is not there yet")


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
