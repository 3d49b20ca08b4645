"""A check counts everything, and names what is wrong."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from star_cli.data.check import Spread, check_source
from star_cli.data.open import open_source
from star_cli.data.source import ShapeScenes
from star_cli.data.stored import BadFile
from tests.data.builders import encoded, make_folder, make_tar, noise, put, samples


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Three good pictures of different sizes, one of them without a caption, and two bad ones."""
    root = tmp_path / "mixed"
    for name, (width, height) in {"a": (40, 20), "b": (30, 30), "c": (20, 40)}.items():
        put(root / f"{name}.png", encoded(noise(width, height)))
    put(root / "a.txt", "a red circle\na disc")
    put(root / "b.txt", "square")
    put(root / "d.jpg", b"")
    put(root / "e.jpg", encoded(noise(300, 300), "JPEG")[:2000])
    return root


def test_counts_sizes_captions_and_bad_files(mixed: Path) -> None:
    source = open_source(mixed)
    report = check_source(source)
    assert report.pictures == 3
    assert report.width == report.height == Spread(20, 30, 40)
    assert report.aspect == Spread(0.5, 1, 2)
    assert report.captions == 3
    assert report.captions_each == Spread(0, 1, 2)
    assert report.characters == Spread(6, 6, 12)
    assert report.words == Spread(1, 2, 3)
    assert (report.uncaptioned, report.uncaptioned_examples) == (1, ("c.png",))
    assert [file.name for file in report.bad] == ["d.jpg", "e.jpg"]
    assert report.bad[0].reason == "not a picture that can be read"
    assert "truncated" in report.bad[1].reason
    assert report.fingerprint == source.fingerprint
    assert json.loads(json.dumps(report.to_dict()))["bad"][0] == {
        "name": "d.jpg",
        "reason": "not a picture that can be read",
    }


def test_threads_change_nothing_and_progress_is_told_in_order_here(mixed: Path) -> None:
    told: list[tuple[int, int]] = []
    callers = set()

    def on_progress(done: int, total: int) -> None:
        told.append((done, total))
        callers.add(threading.get_ident())

    source = open_source(mixed)
    assert check_source(source, on_progress, threads=4) == check_source(source, threads=1)
    assert told == [(done, 5) for done in range(1, 6)]
    assert callers == {threading.get_ident()}


def test_one_broken_picture_in_a_thousand_is_found(tmp_path: Path) -> None:
    make_folder(tmp_path, 1)
    for index in range(1, 1000):
        (tmp_path / f"x{index:04d}.png").hardlink_to(tmp_path / "00.png")
    put(tmp_path / "broken", b"\x89PNG\r\n\x1a\n").replace(tmp_path / "x0617.png")
    report = check_source(open_source(tmp_path))
    assert report.pictures == 999
    assert [file.name for file in report.bad] == ["x0617.png"]
    assert (report.uncaptioned, len(report.uncaptioned_examples)) == (998, 10)


def test_what_opening_a_shard_met_is_among_the_bad_files(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", [*samples(0, 2), ("02.png", b"junk"), ("03.txt", b"alone")])
    report = check_source(open_source(path))
    assert report.pictures == 2
    assert [Path(file.name).name for file in report.bad] == ["03", "02"]


def test_captions_that_cannot_be_read_make_a_bad_file(tmp_path: Path) -> None:
    make_folder(tmp_path, 2)
    put(tmp_path / "01.txt", b"caf\xe9")
    report = check_source(open_source(tmp_path))
    assert report.bad == (BadFile("01.png", "its captions in 01.txt: not UTF-8 at byte 3"),)
    assert report.captions == 1


def test_generated_scenes_have_captions_and_no_size() -> None:
    report = check_source(ShapeScenes(20))
    assert (report.pictures, report.captions, report.uncaptioned) == (20, 20, 0)
    assert report.width is report.height is report.aspect is None
    assert report.words is not None
    assert report.words.min >= 2


def test_a_set_of_bad_files_alone_has_no_figures(tmp_path: Path) -> None:
    put(tmp_path / "a.png", b"junk")
    report = check_source(open_source(tmp_path))
    assert (report.pictures, len(report.bad)) == (0, 1)
    assert report.width is report.characters is report.captions_each is None
