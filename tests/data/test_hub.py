"""Datasets of `datasets`, built here and saved to disk: columns, splits, captions, errors."""

from __future__ import annotations

import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.data.folder import ImageFolder
from star_cli.data.hub import HubImages, open_hub
from star_cli.errors import BadImageError, DataError
from tests.data.builders import encoded, make_folder, metadata, noise, put

datasets = pytest.importorskip("datasets")

COUNT = 4


def pictures(count: int = COUNT) -> list[dict[str, Any]]:
    """The pictures of `make_folder`, as a column stores them."""
    return [{"bytes": encoded(noise(40 + index, 32, index)), "path": None} for index in range(count)]


def save(folder: Path, columns: dict[str, list[Any]], **features: Any) -> str:
    dataset = datasets.Dataset.from_dict(columns)
    for column, feature in features.items():
        dataset = dataset.cast_column(column, feature)
    dataset.save_to_disk(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def _quiet_library() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def saved(tmp_path: Path) -> str:
    columns = {"image": pictures(), "text": [f"picture {index}" for index in range(COUNT)]}
    return save(tmp_path / "saved", columns, image=datasets.Image())


def test_a_saved_dataset_gives_the_pixels_and_captions_of_the_files(saved: str, tmp_path: Path) -> None:
    source, folder = HubImages(saved), ImageFolder(make_folder(tmp_path / "folder", COUNT))
    assert len(source) == COUNT
    for index in range(COUNT):
        ours, theirs = (one.pixels(index, 16, "random", random.Random(index)) for one in (source, folder))
        assert torch.equal(ours, theirs)
        assert source.captions(index) == folder.captions(index)
    assert source.name(2) == f"{saved}, row 2"


def test_the_hub_word_opens_a_saved_dataset_too(saved: str) -> None:
    assert open_hub(f"hf:{saved}").captions(1) == ("picture 1",)


def test_a_folder_in_the_imagefolder_convention_is_the_same_here_and_in_datasets(tmp_path: Path) -> None:
    make_folder(tmp_path / "data/train", 2, captions=False)
    records = ({"file_name": "00.png", "text": "zero"}, {"file_name": "01.png", "text": "one"})
    put(tmp_path / "data/train/metadata.jsonl", metadata(*records))
    theirs, ours = open_hub(f"hf:{tmp_path / 'data'}:train"), ImageFolder(tmp_path / "data")
    assert [theirs.captions(index) for index in range(2)] == [ours.captions(index) for index in range(2)]
    pair = [one.pixels(1, 16, "centre", random.Random(0)) for one in (theirs, ours)]
    assert torch.equal(*pair)


def test_captions_may_be_lists_and_columns_may_be_named(tmp_path: Path) -> None:
    columns = {
        "photo": pictures(2),
        "other": pictures(2),
        "captions": [["one", " "], ["two", "three"]],
        "long": ["a long one", None],
    }
    features = {"photo": datasets.Image(), "other": datasets.Image()}
    where = save(tmp_path / "saved", columns, **features)
    with pytest.raises(DataError, match=r"several columns of pictures \(photo, other\)") as raised:
        HubImages(where)
    assert raised.value.hint == "name one: --image-column, or data.image_column in a recipe"
    source = HubImages(where, image_column="photo")
    assert [source.captions(index) for index in range(2)] == [("one",), ("two", "three")]
    named = HubImages(where, image_column="photo", caption_column="long")
    assert [named.captions(index) for index in range(2)] == [("a long one",), ()]
    with pytest.raises(DataError, match="has no column tags") as raised:
        HubImages(where, image_column="photo", caption_column="tags")
    assert raised.value.hint == "its columns: photo, other, captions, long"


def test_a_column_of_bytes_called_image_is_one_of_pictures(tmp_path: Path) -> None:
    where = save(tmp_path / "saved", {"png": [one["bytes"] for one in pictures(1)], "n": [1]})
    source = HubImages(where)
    assert source.captions(0) == ()
    assert source.picture(0, 16).width == 40


def test_rows_without_a_readable_picture_or_caption_are_named(tmp_path: Path) -> None:
    broken = {"bytes": b"broken", "path": None}
    columns = {"image": [broken, None], "text": [1, 2]}
    source = HubImages(save(tmp_path / "saved", columns, image=datasets.Image()))
    with pytest.raises(BadImageError, match=r"row 0: not a picture"):
        source.pixels(0, 16, "centre", random.Random(0))
    with pytest.raises(BadImageError, match=r"row 1: no picture in column image"):
        source.pixels(1, 16, "centre", random.Random(0))
    with pytest.raises(BadImageError, match=r"row 0: text must be a string or a list of strings, not 1"):
        source.captions(0)


def test_splits_are_chosen_and_named(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"image": pictures(1), "text": ["one"]}).cast_column("image", datasets.Image())
    two = datasets.Dataset.from_dict({"image": pictures(2), "text": ["one", "two"]})
    two = two.cast_column("image", datasets.Image())
    where = str(tmp_path / "saved")
    datasets.DatasetDict({"test": one, "train": two}).save_to_disk(where)
    assert len(HubImages(where)) == 2
    assert len(open_hub(f"hf:{where}:test")) == 1
    with pytest.raises(DataError, match="has no split validation") as raised:
        open_hub(f"hf:{where}:validation")
    assert raised.value.hint == "its splits: test, train"


def test_a_copy_in_another_process_is_the_same_set(saved: str) -> None:
    source = HubImages(saved)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(*(one.pixels(3, 16, "centre", random.Random(0)) for one in (source, copy)))
    assert copy.fingerprint == source.fingerprint


def test_fingerprint_follows_captions_but_not_the_place(saved: str, tmp_path: Path) -> None:
    columns = {"image": pictures(), "text": [f"picture {index}" for index in range(COUNT)]}
    same = save(tmp_path / "b", columns, image=datasets.Image())
    other = save(tmp_path / "c", columns | {"text": ["another"] * COUNT}, image=datasets.Image())
    assert HubImages(saved).fingerprint == HubImages(same).fingerprint
    assert HubImages(saved).fingerprint != HubImages(other).fingerprint


def test_sets_without_captions_are_told_apart_by_their_pictures(tmp_path: Path) -> None:
    columns = {name: pictures() for name in ("first", "same")} | {"other": pictures(COUNT + 1)[1:]}
    sets = [save(tmp_path / name, {"image": column}, image=datasets.Image()) for name, column in columns.items()]
    first, same, other = (HubImages(where).fingerprint for where in sets)
    assert first == same != other


def test_datasets_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column of pictures \(n\)"):
        HubImages(save(tmp_path / "saved", {"n": [1]}))
    empty = datasets.Dataset.from_dict({"image": [], "text": []})
    empty.to_parquet(tmp_path / "empty/train.parquet")
    with pytest.raises(DataError, match=r"empty cannot be loaded: .* no data"):
        open_hub(f"hf:{tmp_path / 'empty'}")


def test_a_dataset_without_rows_is_refused(tmp_path: Path) -> None:
    columns = {"image": pictures(), "text": [""] * COUNT}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    rows.filter(lambda row: False).save_to_disk(tmp_path / "filtered")
    with pytest.raises(DataError, match="filtered has no rows"):
        HubImages(str(tmp_path / "filtered"))
    rows.select([]).save_to_disk(tmp_path / "none")  # which `datasets` saves, but does not load
    with pytest.raises(DataError, match="none cannot be loaded: ") as raised:
        HubImages(str(tmp_path / "none"))
    assert not str(raised.value).startswith("hf:")  # which nobody wrote


def test_a_dataset_that_does_not_exist_is_told_with_the_way_to_name_one() -> None:
    with pytest.raises(DataError, match=r"^hf:nobody/nothing cannot be loaded: ") as raised:
        open_hub("hf:nobody/nothing")  # offline: see conftest
    assert "hf:NAME" in str(raised.value.hint)


def test_without_datasets_the_extra_is_named(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package datasets") as raised:
        HubImages(saved)
    assert raised.value.hint == "pip install 'star-cli[data]'"
