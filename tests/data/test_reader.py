"""A step's pictures: bad ones are replaced, named, and change nothing beside themselves."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from star_cli.data.folder import ImageFolder
from star_cli.data.reader import ReadRows, read_rows
from star_cli.data.source import ShapeScenes
from star_cli.errors import DataError
from tests.data.builders import make_folder, put

COUNT = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", COUNT)


def read(folder: Path, rows: list[int], seed: int = 0) -> ReadRows:
    return read_rows(ImageFolder(folder), rows, 16, "random", random.Random(seed))


def test_rows_come_in_order_with_their_captions(folder: Path) -> None:
    found = read(folder, [5, 0, 9])
    assert found.rows == [5, 0, 9]
    assert found.pixels.shape == (3, 3, 16, 16)
    assert found.captions == ["picture 5", "picture 0", "picture 9"]
    assert found.skipped == ()


def test_a_bad_picture_is_replaced_and_named_and_changes_nothing_else(folder: Path) -> None:
    rows = [5, 0, 9, 3]
    whole = read(folder, rows)
    put(folder / "00.png", b"broken")
    found = read(folder, rows)
    assert [(bad.name, bad.reason) for bad in found.skipped] == [("00.png", "not a picture that can be read")]
    assert found.rows[1] != 0
    assert found.captions[1] == f"picture {found.rows[1]}"
    for place in (0, 2, 3):
        assert found.rows[place] == rows[place]
        assert torch.equal(found.pixels[place], whole.pixels[place])
    alone = ImageFolder(folder).picture(found.rows[1], 16)
    assert (alone.width, alone.height) == (40 + found.rows[1], 32)


def test_the_same_step_has_the_same_replacements_another_one_others(folder: Path) -> None:
    put(folder / "00.png", b"broken")
    first, again = read(folder, [0, 1]), read(folder, [0, 1])
    assert first.rows == again.rows
    assert torch.equal(first.pixels, again.pixels)
    assert len({read(folder, [0, 1], seed).rows[0] for seed in range(12)}) > 3


def test_captions_that_cannot_be_read_make_a_picture_bad(folder: Path) -> None:
    put(folder / "01.txt", b"\xff\xfe\xff")
    found = read(folder, [0, 1, 2, 3])
    assert [bad.name for bad in found.skipped] == ["01.png"]
    assert found.pixels.shape[0] == len(found.captions) == len(found.rows) == 4


def test_one_in_a_thousand_stops_no_batch_of_any_size(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", 1, captions=False)
    for index in range(1, 1000):
        (folder / f"{index:04d}.png").hardlink_to(folder / "00.png")
    put(folder / "0500.png.tmp", b"broken").replace(folder / "0500.png")
    source = ImageFolder(folder)
    skipped = []
    for first in (499, 500, 0):
        for batch_size in (1, 2, 5):
            rows = range(first, first + batch_size)
            skipped += read_rows(source, rows, 8, "centre", random.Random(first)).skipped
    assert {bad.name for bad in skipped} == {"0500.png"}
    assert len(skipped) == 5  # the batches that hold it


def test_more_than_half_a_batch_is_an_error(folder: Path) -> None:
    for index in range(5):
        put(folder / f"{index:02d}.png", b"broken")
    bad = {bad.name for bad in read(folder, [0, 1, 2, 10, 11, 12, 13, 14]).skipped}
    assert bad >= {"00.png", "01.png", "02.png"}
    with pytest.raises(DataError, match=r"cannot be read: 5 for a batch of 8, first 00\.png: not a"):
        read(folder, [0, 1, 2, 3, 4, 10, 11, 12])


def test_a_set_of_bad_pictures_alone_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "a.png", b"broken")
    with pytest.raises(DataError, match=r"cannot be read: 1 for a batch of 1") as raised:
        read(tmp_path, [0])
    assert "star data check" in str(raised.value.hint)


def test_generated_scenes_are_read_like_files() -> None:
    found = read_rows(ShapeScenes(10), [3, 4], 32, "centre", random.Random(0))
    assert torch.equal(found.pixels[1], ShapeScenes(10).pixels(4, 32, "centre", random.Random(0)))
    assert all(found.captions)
