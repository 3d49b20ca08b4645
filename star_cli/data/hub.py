"""Hugging Face `datasets`: by name from the hub, or saved to disk. Needs the extra `data`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from star_cli.data.caption_files import CAPTION_FIELDS, captions_in_value
from star_cli.data.stored import StoredImages
from star_cli.errors import BadImageError, DataError

PREFIX = "hf:"
_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` writes for a split, and for several
_PICTURE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "picture")
_DEFAULT_SPLIT = "train"
_LOOKED_AT = 16  # pictures, or up to twice as many, evenly spread, whose bytes tell two sets apart


class HubImages(StoredImages):
    """One split of a dataset with a column of pictures.

    Args:
        name: of a dataset on the hub, or a folder that `save_to_disk` wrote.
        split: which split; None: `train`, or the only one.
        config: which configuration of a dataset on the hub; None: its only one.
        image_column: the pictures; None: the only column of the type Image, else one called image.
        caption_column: strings or lists of strings; None: the first of `CAPTION_FIELDS` that is there.
    Raises:
        DataError: `datasets` is not installed, or no such dataset, split or column, or no row in it.
    """

    def __init__(
        self,
        name: str,
        split: str | None = None,
        config: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
    ):
        self.label = name
        dataset = _load(name, split, config)
        if not len(dataset):
            raise DataError(f"{name} has no rows", "give another dataset, or another split")
        features = dataset.features
        self.image_column = _choose_pictures(name, features, image_column)
        self.caption_column = _choose_captions(name, features, caption_column)
        self._pictures = _undecoded(dataset, self.image_column)
        # One column alone: a caption must not read its picture.
        self._captions = dataset.select_columns([self.caption_column]) if self.caption_column else None

    @property
    def fingerprint(self) -> str:
        """Of the number of pictures, all captions, and some of the pictures: all would have to be read for it."""
        if self._fingerprint is None:
            told = hashlib.sha256(repr((len(self), self.image_column, self.caption_column)).encode())
            for index in range(len(self) if self._captions is not None else 0):
                told.update(repr(self._value(index)).encode())
            for index in range(0, len(self), max(1, len(self) // _LOOKED_AT)):
                told.update(self._bytes(index))
            self._fingerprint = told.hexdigest()[:16]
        return self._fingerprint

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._pictures)

    def name(self, index: int) -> str:
        """Dataset and row."""
        return f"{self.label}, row {index}"

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a row.

        Raises:
            BadImageError: they are no strings.
        """
        if self._captions is None or self.caption_column is None:
            return ()
        try:
            return captions_in_value(self._value(index), self.caption_column)
        except ValueError as error:
            raise BadImageError(f"{self.name(index)}: {error}") from error

    def _value(self, index: int) -> Any:
        return self._captions[index][self.caption_column] if self._captions is not None else None

    def _identity(self, index: int) -> tuple[object, ...]:
        return index, self._value(index)

    def _bytes(self, index: int) -> bytes:
        try:
            file = self._open(index)
            return file.read_bytes() if isinstance(file, Path) else file.read()
        except (BadImageError, OSError):
            return b""

    def _open(self, index: int) -> Path | BinaryIO:
        value = self._pictures[index][self.image_column]
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return io.BytesIO(value)
        if isinstance(value, str):
            return Path(value)
        raise BadImageError(f"{self.name(index)}: no picture in column {self.image_column}")


def is_saved_dataset(folder: Path) -> bool:
    """Did `save_to_disk` write this folder?"""
    return any((folder / name).is_file() for name in _SAVED)


def open_hub(where: str, image_column: str | None = None, caption_column: str | None = None) -> HubImages:
    """Open `hf:NAME[@CONFIG][:SPLIT]`, where NAME is that of a dataset on the hub or a folder.

    Raises:
        DataError: see `HubImages`.
    """
    name, _, split = where.removeprefix(PREFIX).partition(":")
    name, _, config = name.partition("@")
    if not name:
        raise DataError(f"{where}: without a name", "for example hf:lambdalabs/naruto-blip-captions:train")
    return HubImages(name, split or None, config or None, image_column, caption_column)


def _load(name: str, split: str | None, config: str | None) -> Any:
    """A map-style dataset."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name} needs the package datasets, which is not installed", "pip install 'star-cli[data]'"
        ) from error
    datasets.disable_progress_bars()
    is_saved = is_saved_dataset(Path(name))
    try:
        if is_saved:
            return _one_split(name, datasets.load_from_disk(name), split)
        return datasets.load_dataset(name, config, split=split or _DEFAULT_SPLIT)
    except DataError:
        raise
    except Exception as error:  # builders of datasets fail in ways of their own
        words = " ".join(str(error).split()) or type(error).__name__
        if is_saved:
            raise DataError(
                f"{name} cannot be loaded: {words}", "write it again: it has no rows, or is damaged"
            ) from error
        raise DataError(
            f"{PREFIX}{name} cannot be loaded: {words}",
            f"a dataset is named {PREFIX}NAME[@CONFIG][:SPLIT]; see its page on the hub",
        ) from error


def _one_split(name: str, loaded: Any, split: str | None) -> Any:
    if not isinstance(loaded, Mapping):
        if split is not None:
            raise DataError(f"{name} is a single split, without a name", f"leave :{split} out")
        return loaded
    if split is None:
        split = next(iter(loaded)) if len(loaded) == 1 else _DEFAULT_SPLIT
    if split not in loaded:
        raise DataError(f"{name} has no split {split}", f"its splits: {', '.join(loaded)}")
    return loaded[split]


def _choose_pictures(name: str, features: Mapping[str, Any], wanted: str | None) -> str:
    if wanted is not None:
        return _existing(name, features, wanted)
    images = [column for column, feature in features.items() if type(feature).__name__ == "Image"]
    if len(images) == 1:
        return images[0]
    for column in _PICTURE_COLUMNS:
        if column in (images or features):
            return column
    many = ", ".join(images)
    found = f"several columns of pictures ({many})" if images else f"no column of pictures ({_list(features)})"
    raise DataError(f"{name} has {found}", "name one: --image-column, or data.image_column in a recipe")


def _choose_captions(name: str, features: Mapping[str, Any], wanted: str | None) -> str | None:
    if wanted is not None:
        return _existing(name, features, wanted)
    return next((column for column in CAPTION_FIELDS if column in features), None)


def _existing(name: str, features: Mapping[str, Any], column: str) -> str:
    if column not in features:
        raise DataError(f"{name} has no column {column}", f"its columns: {_list(features)}")
    return column


def _list(features: Mapping[str, Any]) -> str:
    return ", ".join(features)


def _undecoded(dataset: Any, column: str) -> Any:
    """The column of pictures alone, as files: decoding is done here as for every other source."""
    from datasets import Image

    alone = dataset.select_columns([column])
    return alone.cast_column(column, Image(decode=False)) if isinstance(dataset.features[column], Image) else alone
