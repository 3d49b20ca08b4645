"""One word for where pictures are, to the set of them."""

from __future__ import annotations

import os
from pathlib import Path

from star_cli.data.folder import ImageFolder
from star_cli.data.hub import PREFIX as HUB
from star_cli.data.hub import HubImages, is_saved_dataset, open_hub
from star_cli.data.scenes import HELD_OUT_SEED
from star_cli.data.shard_files import COMPRESSED, PIPE, SHARD_SUFFIX, expand
from star_cli.data.shards import ShardImages
from star_cli.data.source import CaptionedImages, ShapeScenes
from star_cli.data.transforms import SUFFIXES
from star_cli.errors import DataError

SHAPES = "shapes"
DEFAULT_SCENES = 65_536
ICONS = "icons"
ICON_SCENES = 2**24
"""Scenes of icons that training draws from: more than any run sees."""

_KINDS = (
    "data is a folder of pictures, tar shards (data/{000..010}.tar), pipe:COMMAND, hf:NAME[:SPLIT], "
    "a dataset saved to disk, shapes[:COUNT], or, for training, icons[:MIX[:OBJECTS]]"
)
_DIGITS = 12  # of a number that is looked at: Python converts some thousands at most
_TAR = (SHARD_SUFFIX, *COMPRESSED)


def open_source(
    where: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    spool_folder: Path | None = None,
) -> CaptionedImages:
    """Open a set of captioned pictures.

    Args:
        where: a folder of pictures, of tar shards, or saved by `datasets`; tar files, with `{000..010}`, `{a,b}` or
            wildcards; `pipe:COMMAND`; `hf:NAME[@CONFIG][:SPLIT]`; `shapes` or `shapes:COUNT`, the generated scenes;
            `icons`, `icons:MIX` or `icons:MIX:OBJECTS`, composed ones (see `data/icons/scenes.py`).
        image_column: the column of pictures of a dataset of `datasets`; None: found.
        caption_column: the column or JSON field with captions; None: found.
        spool_folder: see `ShardImages`.
    Raises:
        DataError: nothing there, nothing in it, or an option that this kind of data does not have.
    """
    where = os.fspath(where)
    kind = _kind(where)
    if image_column is not None and kind != "hub":
        raise DataError(f"{where} has no columns of pictures", "leave --image-column out")
    if caption_column is not None and kind in ("shapes", "icons"):
        raise DataError("generated scenes have no columns of captions", "leave --caption-column out")
    if kind == "shapes":
        return ShapeScenes(_scenes(where))
    if kind == "icons":
        return _icons(where)
    if kind == "hub":
        if where.startswith(HUB):
            return open_hub(where, image_column, caption_column)
        return HubImages(where, image_column=image_column, caption_column=caption_column)
    if kind == "shards":
        return ShardImages(where, caption_column, spool_folder)
    return ImageFolder(where, caption_column)


def is_endless(where: str) -> bool:
    """Are these scenes of which training takes as many as it needs, and which nobody can read to the end?"""
    return where == ICONS or where.startswith(f"{ICONS}:")


def _kind(where: str) -> str:
    """What a place is called, or what stands there; a place that is there wins over what its name could mean."""
    if where == SHAPES or where.startswith(f"{SHAPES}:"):
        return "shapes"
    if is_endless(where):
        return "icons"
    if where.startswith(HUB):
        return "hub"
    if where.startswith(PIPE):
        return "shards"
    if not where:
        raise DataError("no data given", _KINDS)
    path, is_file = Path(where), os.path.isfile(where)  # noqa: PTH113 - Path.is_file raises for a long name
    if os.path.isdir(where):  # noqa: PTH112 - likewise
        return _kind_of_folder(path)
    if is_file and path.suffix.lower() not in _TAR:
        raise _no_data_file(path)
    if is_file or _looks_like_shards(where):
        return "shards"
    raise _missing(where)


def _kind_of_folder(path: Path) -> str:
    if is_saved_dataset(path):
        return "hub"
    try:
        suffixes = {entry.suffix.lower() for entry in path.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if not suffixes:
        has_any = any(path.iterdir())
        raise DataError(f"{path}: {'nothing but hidden files' if has_any else 'an empty folder'}", _KINDS)
    return "shards" if SHARD_SUFFIX in suffixes and not suffixes & SUFFIXES else "folder"


def _looks_like_shards(where: str) -> bool:
    return "://" not in where and (expand(where) != [where] or any(sign in where for sign in "*?["))


def _no_data_file(path: Path) -> DataError:
    if path.suffix.lower() in SUFFIXES or path.suffix == ".jsonl":
        return DataError(f"{path} is a single file", f"give its folder: {path.parent}")
    return DataError(f"{path}: not a kind of data that is known", _KINDS)


def _missing(where: str) -> DataError:
    if "://" in where:
        return DataError(f"{where}: no address is read directly", f"'{PIPE}curl -sfL {where}' reads a shard")
    kind, colon, _ = where.partition(":")
    if colon and kind.isalpha() and len(kind) > 1:  # one letter is a drive
        return DataError(f"{where}: there is no kind of data {kind}:, and no such folder", _KINDS)
    return DataError(f"{where}: no such file or folder", _KINDS)


def _scenes(where: str) -> int:
    text = where.removeprefix(SHAPES).removeprefix(":")
    if not text:
        return DEFAULT_SCENES
    digits = text.lstrip("0")
    if not text.isdecimal() or not digits:
        raise DataError(f"{where}: {text!r} is not a number of scenes", f"for example {SHAPES}:1000")
    if len(digits) > _DIGITS or int(digits) > HELD_OUT_SEED:
        raise DataError(f"{where}: there are {HELD_OUT_SEED:,} scenes to learn from", f"for example {SHAPES}:1000")
    return int(digits)


def _icons(where: str) -> CaptionedImages:
    from star_cli.data.icons.catalogue import DEFAULT_OBJECTS
    from star_cli.data.icons.source import IconScenes

    _, mix, objects, *more = [*where.split(":"), "", ""][: max(3, where.count(":") + 1)]
    if more or not (objects or "0").isdecimal() or len(objects) > _DIGITS:
        raise DataError(
            f"{where}: not a set of icon scenes", f"for example {ICONS}, {ICONS}:simple or {ICONS}:full:150"
        )
    return IconScenes.open(ICON_SCENES, mix=mix or "full", objects=int(objects) if objects else DEFAULT_OBJECTS)
