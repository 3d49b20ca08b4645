"""Folders of pictures: found, counted in order, and matched with their captions."""

from __future__ import annotations

import os
import pickle
import random
import sys
from pathlib import Path

import pytest
import torch

from star_cli.data.folder import ImageFolder
from star_cli.errors import BadImageError, DataError
from tests.data.builders import encoded, make_folder, metadata, noise, put

PNG = encoded(noise(40, 32))


def names(source: ImageFolder) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def captions(source: ImageFolder) -> dict[str, tuple[str, ...]]:
    return {source.name(index): source.captions(index) for index in range(len(source))}


def test_pictures_are_found_below_and_counted_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.JPG", "a/deep/er/x.webp", "A.jpeg", "notes.md", ".hidden.png", ".cache/y.png"):
        put(tmp_path / name, PNG)
    assert names(ImageFolder(tmp_path)) == ["A.jpeg", "a/deep/er/x.webp", "a/z.JPG", "b.png"]


def test_a_text_file_gives_a_caption_a_line(tmp_path: Path) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "a.txt", "one\n\n  two  \nthree")
    put(tmp_path / "b.png", PNG)
    assert captions(ImageFolder(tmp_path)) == {"a.png": ("one", "two", "three"), "b.png": ()}


@pytest.mark.parametrize(
    "data",
    [
        "Ein Fußgänger 🚶\r\n猫\r\n".encode(),
        b"\xef\xbb\xbf" + "Ein Fußgänger 🚶\n猫".encode(),
        "Ein Fußgänger 🚶\r猫".encode(),
        "Ein Fußgänger 🚶\r\n猫".encode("utf-16"),
    ],
    ids=["crlf", "bom", "cr", "utf-16"],
)
def test_captions_of_any_script_byte_order_mark_and_line_end(tmp_path: Path, data: bytes) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "a.txt", data)
    assert ImageFolder(tmp_path).captions(0) == ("Ein Fußgänger 🚶", "猫")


def test_a_line_separator_inside_a_sentence_is_no_end_of_line(tmp_path: Path) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "a.txt", "one\u2028and\x0bthe same")
    assert ImageFolder(tmp_path).captions(0) == ("one\u2028and\x0bthe same",)


def test_captions_in_another_encoding_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "a.txt", "Fußgänger".encode("latin-1"))
    with pytest.raises(BadImageError, match=r"^a\.png: its captions in a\.txt: not UTF-8 at byte 2$"):
        ImageFolder(tmp_path).captions(0)


def test_caption_is_one_of_several_by_the_generator_and_empty_without(tmp_path: Path) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "a.txt", "one\ntwo\nthree")
    put(tmp_path / "b.png", PNG)
    source = ImageFolder(tmp_path)
    drawn = [source.caption(0, random.Random(seed)) for seed in range(30)]
    assert drawn == [source.caption(0, random.Random(seed)) for seed in range(30)]
    assert set(drawn) == {"one", "two", "three"}
    assert source.caption(1, random.Random(0)) == ""


# -- metadata.jsonl ---------------------------------------------------------------------------------------------------


def test_metadata_gives_captions_under_each_field(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "c.png", "d.png", "e.png"):
        put(tmp_path / name, PNG)
    put(tmp_path / "d.txt", "from its text file")
    records = metadata(
        {"file_name": "a.png", "text": "one"},
        {"file_name": "./sub/b.png", "caption": ["two", "three"]},
        {"file_name": "c.png", "captions": ["four"], "id": 7},
        {"file_name": "e.png", "text": None},
    )
    put(tmp_path / "metadata.jsonl", "\ufeff" + records.replace("\n", "\r\n\r\n"))
    assert captions(ImageFolder(tmp_path)) == {
        "a.png": ("one",),
        "c.png": ("four",),
        "d.png": ("from its text file",),
        "e.png": (),
        "sub/b.png": ("two", "three"),
    }


def test_metadata_of_a_folder_below_counts_from_there_and_lines_add_up(tmp_path: Path) -> None:
    put(tmp_path / "sub/a.png", PNG)
    rows = ({"file_name": "a.png", "text": "one"}, {"file_name": "a.png", "text": "two"})
    put(tmp_path / "sub/metadata.jsonl", metadata(*rows))
    assert captions(ImageFolder(tmp_path)) == {"sub/a.png": ("one", "two")}


def test_the_caption_field_can_be_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "metadata.jsonl", metadata({"file_name": "a.png", "text": "one", "long": "a long one"}))
    assert ImageFolder(tmp_path, caption_column="long").captions(0) == ("a long one",)


def test_a_picture_that_metadata_names_and_that_is_gone_is_a_bad_one(tmp_path: Path) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "metadata.jsonl", metadata({"file_name": "gone.png", "text": "one"}))
    source = ImageFolder(tmp_path)
    assert names(source) == ["a.png", "gone.png"]
    with pytest.raises(BadImageError, match=r"^gone\.png: No such file"):
        source.pixels(1, 16, "centre", random.Random(0))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": "a.png", "text"', "not JSON"),
        ('["a.png"]', "not a JSON object"),
        ('{"text": "no name"}', "file_name is missing"),
        ('{"file_name": 7}', "file_name is missing"),
        ('{"file_name": "a.png", "text": 7}', "text must be a string or a list of strings, not 7"),
        ('{"file_name": "a.png", "text": ["x", 7]}', "text must be a string or a list of strings"),
        ('{"file_name": "../a.png"}', "leads out of the folder"),
        ('{"file_name": "/a.png"}', "leads out of the folder"),
        ('{"file_name": "a\\u0000.jpg"}', r"no file can be called 'a\\x00\.jpg'"),
        ('{"file_name": "\\ud800.jpg"}', r"no file can be called '\\ud800\.jpg'"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, line: str, words: str) -> None:
    put(tmp_path / "a.png", PNG)
    put(tmp_path / "metadata.jsonl", '{"file_name": "a.png"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=rf"metadata\.jsonl, line 3: .*{words}") as raised:
        ImageFolder(tmp_path)
    assert raised.value.hint is not None
    assert "file_name" in raised.value.hint


# -- odd trees --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_loops_of_links_end_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    put(root / "a/x.png", PNG)
    put(elsewhere / "y.png", PNG)
    (root / "a/up").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)
    (root / "dangling.png").symlink_to(tmp_path / "gone.png")
    source = ImageFolder(root)
    assert names(source) == ["a/x.png", "b/y.png", "dangling.png"]
    with pytest.raises(BadImageError, match=r"^dangling\.png: No such file"):
        source.pixels(2, 16, "centre", random.Random(0))


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_name_that_is_no_text_is_still_a_picture(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(PNG)
    source = ImageFolder(tmp_path)
    assert source.pixels(0, 16, "centre", random.Random(0)).shape == (3, 16, 16)
    assert source.fingerprint


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "notes.md", "x")
    with pytest.raises(DataError, match="no picture in this folder") as raised:
        ImageFolder(tmp_path)
    assert ".jpg" in str(raised.value.hint)


# -- contract ---------------------------------------------------------------------------------------------------------


def test_a_copy_in_another_process_is_the_same_set(tmp_path: Path) -> None:
    source = ImageFolder(make_folder(tmp_path, 3))
    copy = pickle.loads(pickle.dumps(source))
    assert captions(copy) == captions(source)
    for index in range(3):
        ours, theirs = (one.pixels(index, 16, "random", random.Random(7)) for one in (source, copy))
        assert torch.equal(ours, theirs)


def test_fingerprint_follows_names_sizes_and_captions_but_not_the_place(tmp_path: Path) -> None:
    here = ImageFolder(make_folder(tmp_path / "here", 3)).fingerprint
    assert ImageFolder(make_folder(tmp_path / "there", 3)).fingerprint == here
    changes = {"01.txt": b"Picture 1\n", "01.png": PNG + b"\0", "03.png": PNG}
    for number, (name, data) in enumerate(changes.items()):
        root = make_folder(tmp_path / str(number), 3)
        put(root / name, data)
        assert ImageFolder(root).fingerprint != here
