"""One word says where data is; what it cannot mean is told with what it could."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from star_cli.data.folder import ImageFolder
from star_cli.data.open import open_source
from star_cli.data.shards import ShardImages
from star_cli.data.source import ShapeScenes
from star_cli.errors import DataError
from tests.data.builders import encoded, make_folder, make_tar, noise, put, samples


def test_each_kind_is_opened(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder", 2)
    shard = make_tar(tmp_path / "shards/s-0.tar", samples(0, 3))
    make_tar(tmp_path / "shards/s-1.tar", samples(3, 1))
    assert isinstance(open_source(folder), ImageFolder)
    for where, count in {shard: 3, tmp_path / "shards/s-{0..1}.tar": 4, tmp_path / "shards/*.tar": 4}.items():
        source = open_source(where)
        assert isinstance(source, ShardImages)
        assert len(source) == count
    assert len(open_source(tmp_path / "shards")) == 4
    scenes = open_source("shapes:7")
    assert isinstance(scenes, ShapeScenes)
    assert len(scenes) == 7
    assert len(open_source("shapes")) > 10_000


@pytest.mark.skipif(shutil.which("cat") is None, reason="needs cat")
def test_a_command_is_opened_and_its_output_kept_where_asked_for(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "s.tar", samples(0, 2))
    source = open_source(f"pipe:cat '{shard}'", spool_folder=tmp_path / "kept")
    assert len(source) == 2
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_saved_dataset_is_opened_as_one(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = {"image": [{"bytes": encoded(noise(8, 8)), "path": None}], "note": ["x"]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved", image_column="image", caption_column="note")
    assert source.captions(0) == ("x",)


def test_folder_names_with_wildcards_in_them_are_taken_as_they_are(tmp_path: Path) -> None:
    make_tar(tmp_path / "data [1]/s.tar", samples(0, 2))
    assert len(open_source(tmp_path / "data [1]")) == 2


def test_a_place_that_is_there_wins_over_what_its_braces_could_mean(tmp_path: Path) -> None:
    make_tar(tmp_path / "b{1,2}/s.tar", samples(0, 2))
    make_tar(tmp_path / "c{1,2}.tar", samples(0, 3))
    make_folder(tmp_path / "d{1,2}", 1)
    assert [len(open_source(tmp_path / name)) for name in ("b{1,2}", "c{1,2}.tar", "d{1,2}")] == [2, 3, 1]


def test_a_list_of_names_may_be_longer_than_a_path_can_be(tmp_path: Path) -> None:
    numbers = [str(number) for number in range(100)]
    for number in numbers:
        make_tar(tmp_path / f"shard-number-{number}.tar", samples(0, 1))
    where = f"{tmp_path}/{{{','.join(f'shard-number-{number}' for number in numbers)}}}.tar"
    assert len(where) > 1000
    assert len(open_source(where)) == 100


def test_suffixes_of_shards_may_be_in_capitals(tmp_path: Path) -> None:
    make_tar(tmp_path / "up/001.TAR", samples(0, 2))
    make_tar(tmp_path / "up/000.tar", samples(2, 1))
    put(tmp_path / "up/.hidden.tar", b"x")
    put(tmp_path / "up/sizes.json", b"{}")
    source = open_source(tmp_path / "up")
    assert [source.name(index) for index in (0, 1)] == [
        str(tmp_path / "up/000.tar/02"),
        str(tmp_path / "up/001.TAR/00"),
    ]


def test_the_same_pictures_come_from_a_folder_and_from_shards(tmp_path: Path) -> None:
    folder = open_source(make_folder(tmp_path / "folder", 3))
    tars = open_source(make_tar(tmp_path / "s.tar", samples(0, 3)))
    for index in range(3):
        pair = [one.pixels(index, 24, "random", random.Random(index)) for one in (folder, tars)]
        assert torch.equal(*pair)


@pytest.mark.parametrize(
    ("where", "words", "hint"),
    [
        ("", "no data given", "folder of pictures"),
        ("gone", "gone: no such file or folder", "folder of pictures"),
        ("empty", "empty: an empty folder", "folder of pictures"),
        ("hidden", "hidden: nothing but hidden files", "folder of pictures"),
        ("words", "words: no picture in this folder", ".jpg"),
        ("words/a.txt", "a.txt: not a kind of data that is known", "folder of pictures"),
        ("folder/00.png", "00.png is a single file", "give its folder: folder"),
        ("gone-{0..3}.tar", "gone-0.tar: no such file", "in braces"),
        ("*.tar", r"\*.tar: no such file", "quote the pattern"),
        ("https://example.org/a.tar", "no address is read directly", "'pipe:curl -sfL https://example.org/a.tar'"),
        ("lmdb:data", "no kind of data lmdb:", "folder of pictures"),
        ("shapes:many", "'many' is not a number of scenes", "shapes:1000"),
        ("shapes:1000000001", "there are 1,000,000,000 scenes", "shapes:1000"),
        pytest.param("shapes:" + "9" * 5000, "there are 1,000,000,000 scenes", "shapes:1000", id="shapes:9..."),
        pytest.param("icons:full:" + "9" * 5000, "not a set of icon scenes", "icons:full:150", id="icons:full:9..."),
        ("gone-{0..30000000}.tar", "more than 1,000,000 names", "folder of the shards"),
        pytest.param("x" * 5000, "no such file or folder", "folder of pictures", id="long"),
        ("a\0b", "no such file or folder", "folder of pictures"),
        ("shapes:0", "'0' is not a number of scenes", "shapes:1000"),
        ("hf:", "hf:: without a name", "hf:"),
        ("pipe:", "pipe: without a command", "pipe:curl"),
    ],
)
def test_what_cannot_be_opened_is_told_with_a_way_out(
    where: str, words: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(Path("folder"), 1)
    Path("empty").mkdir()
    put(Path("hidden/.x"))
    put(Path("words/a.txt"), "x")
    with pytest.raises(DataError, match=words) as raised:
        open_source(where)
    assert hint in str(raised.value.hint)


def test_options_without_effect_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, 1)
    with pytest.raises(DataError, match="no columns of pictures"):
        open_source(folder, image_column="image")
    with pytest.raises(DataError, match="no columns of captions"):
        open_source("shapes", caption_column="text")
