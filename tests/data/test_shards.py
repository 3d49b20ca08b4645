"""Tar shards: every sample found once, read in any order, from any process; damage costs what it hit and no more."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from star_cli.data import shards
from star_cli.data.folder import ImageFolder
from star_cli.data.shards import ShardImages
from star_cli.errors import BadImageError, DataError
from tests.data.builders import encoded, make_folder, make_tar, noise, put, samples

PNG = encoded(noise(40, 32))
BLOCK = 512


@pytest.fixture
def three_shards(tmp_path: Path) -> str:
    """Eight samples in three shards."""
    for number, (first, count) in enumerate([(0, 3), (3, 4), (7, 1)]):
        make_tar(tmp_path / f"s-{number:03d}.tar", samples(first, count))
    return str(tmp_path / "s-{000..002}.tar")


def one_shard(tmp_path: Path, members: list[tuple[str, bytes]]) -> ShardImages:
    return ShardImages(str(make_tar(tmp_path / "s.tar", members)))


def pixels(source: ShardImages | ImageFolder, index: int) -> torch.Tensor:
    return source.pixels(index, 16, "random", random.Random(index))


def problems(source: ShardImages) -> dict[str, str]:
    return {Path(problem.name).name: problem.reason for problem in source.problems}


def test_a_folder_and_shards_of_the_same_files_are_the_same_pictures(tmp_path: Path, three_shards: str) -> None:
    folder, source = ImageFolder(make_folder(tmp_path / "folder", 8)), ShardImages(three_shards)
    assert len(source) == 8
    assert source.problems == ()
    for index in random.Random(0).sample(range(8), 8):
        assert torch.equal(pixels(source, index), pixels(folder, index))
        assert source.captions(index) == folder.captions(index) == (f"picture {index}",)
        assert source.name(index).endswith(f".tar/{index:02d}")


def test_an_index_beyond_the_end_is_refused(three_shards: str) -> None:
    source = ShardImages(three_shards)
    for index in (-1, 8):
        with pytest.raises(IndexError):
            source.name(index)


def test_captions_come_from_each_kind_of_member(tmp_path: Path) -> None:
    told = json.dumps({"caption": ["three", "four"], "url": "x"}).encode()
    members = [
        ("a.jpg", PNG),
        ("a.txt", "\ufeffein Fuß\r\ntwo\r\n".encode()),
        ("a.json", told),
        ("b.PNG", PNG),
        ("b.json", told),
        ("c.caption", b"five"),
        ("c.webp", PNG),
        ("d.captions", b"six\nseven"),
        ("d.gif", PNG),
        ("e.png", PNG),
        ("e.cls", b"7"),
    ]
    source = one_shard(tmp_path, members)
    found = {source.name(index)[-1]: source.captions(index) for index in range(len(source))}
    assert found == {
        "a": ("ein Fuß", "two"),
        "b": ("three", "four"),
        "c": ("five",),
        "d": ("six", "seven"),
        "e": (),
    }


def test_the_json_field_can_be_named(tmp_path: Path) -> None:
    members = [("a.png", PNG), ("a.json", b'{"text": "short", "long": "a long one"}')]
    path = str(make_tar(tmp_path / "s.tar", members))
    assert ShardImages(path, caption_column="long").captions(0) == ("a long one",)


def test_captions_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    source = one_shard(tmp_path, [("a.png", PNG), ("a.json", b"{")])
    with pytest.raises(BadImageError, match=r"s\.tar/a: its captions in \.json: not JSON"):
        source.captions(0)
    assert source.fingerprint


def test_members_in_folders_apart_from_each_other_and_with_long_names_are_samples(tmp_path: Path) -> None:
    long = "x" * 150 + "/" + "ü" * 120  # beyond what a plain header holds
    members = [("one/a.png", PNG), ("two/a.png", PNG), ("._a.png", b"fork"), (f"{long}.png", PNG), ("one/a.txt", b"1")]
    source = one_shard(tmp_path, members)
    assert [source.name(index).partition(".tar/")[2] for index in range(3)] == ["one/a", "two/a", long]
    assert [source.captions(index) for index in range(3)] == [("1",), (), ()]
    assert torch.equal(pixels(source, 2), source.pixels(0, 16, "random", random.Random(2)))


def test_a_member_that_comes_twice_and_one_without_a_picture_are_named(tmp_path: Path) -> None:
    other = encoded(noise(40, 32, 1))
    source = one_shard(tmp_path, [("a.png", PNG), ("a.png", other), ("b.txt", b"alone")])
    assert len(source) == 1
    assert problems(source) == {"a.png": "comes twice: the first one is used", "b": "no picture among its members txt"}
    put(tmp_path / "folder/a.png", PNG)
    assert torch.equal(pixels(source, 0), pixels(ImageFolder(tmp_path / "folder"), 0))


def test_names_with_dots_end_at_the_first_and_a_sample_that_this_costs_its_picture_is_named(tmp_path: Path) -> None:
    members = [("a.jpg", PNG), ("a.mask.png", PNG), ("b.v2.jpg", PNG), ("b.v2.txt", b"x")]
    source = one_shard(tmp_path, members)
    assert [source.name(index)[-2:] for index in range(len(source))] == ["/a"]
    assert problems(source) == {"b": "no picture among its members v2.jpg, v2.txt"}


@pytest.mark.filterwarnings("ignore")  # of a library that is only here to compare with
def test_what_webdataset_writes_and_reads_is_the_same_here(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "s.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for index, key in enumerate(("one", "sub/three", "four")):
            writer.write(
                {"__key__": key, "jpg": noise(40 + index, 32), "txt": f"cäption {index}", "json": {"n": index}}
            )
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    ours = ShardImages(str(path))
    assert [ours.name(index).partition(".tar/")[2] for index in range(3)] == [sample["__key__"] for sample in theirs]
    for index, sample in enumerate(theirs):
        text = next(sample[name] for name in sample if name.endswith("txt"))
        assert ours.captions(index) == (text.decode(),)
        assert ours.picture(index, 16).width == 40 + index


# -- damage -----------------------------------------------------------------------------------------------------------


def offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each member's data stands, and its length."""
    with tarfile.open(path) as archive:
        return {member.name: (member.offset_data, member.size) for member in archive}


def test_of_a_shard_that_is_cut_off_the_members_before_count(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", samples(0, 4))
    start, size = offsets(path)["02.png"]
    path.write_bytes(path.read_bytes()[: start + size // 2])
    source = ShardImages(str(path))
    assert len(source) == 2
    assert problems(source) == {"02.png": "cut off: the tar file ends before it does"}
    assert pixels(source, 1).shape == (3, 16, 16)


def test_any_cut_leaves_whole_samples_and_names_something_or_falls_between_members(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "s.tar", samples(0, 3)).read_bytes()
    ends = {0: 0}
    for number, name in enumerate(("00.png", "01.png", "02.png"), start=1):
        start, size = offsets(tmp_path / "s.tar")[name]
        ends[number] = start + size
    path = tmp_path / "cut.tar"
    for length in range(BLOCK // 2, len(whole), 199):
        path.write_bytes(whole[:length])
        expected = max(number for number, end in ends.items() if end <= length)
        if expected == 0:
            with pytest.raises(DataError, match=r"no picture in these tar files; .*(cut off|tar file)"):
                ShardImages(str(path))
            continue
        source = ShardImages(str(path))
        assert len(source) == expected
        assert [pixels(source, index).shape for index in range(expected)] == [(3, 16, 16)] * expected


def test_a_damaged_header_ends_its_shard_and_is_named(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s-0.tar", samples(0, 3))
    make_tar(tmp_path / "s-1.tar", samples(3, 2))
    data, (start, _) = bytearray(path.read_bytes()), offsets(path)["01.png"]
    data[start - BLOCK : start] = b"\xa5" * BLOCK
    path.write_bytes(data)
    source = ShardImages(str(tmp_path / "s-{0..1}.tar"))
    assert [source.name(index)[-2:] for index in range(len(source))] == ["00", "03", "04"]
    assert problems(source) == {
        "s-0.tar": f"tar file: damaged header at byte {start - BLOCK:,}; what follows is not read"
    }


@pytest.mark.parametrize("data", [b"", b"no tar file at all " * 100], ids=["empty", "text"])
def test_a_shard_that_is_no_tar_file_is_named_and_the_others_are_used(tmp_path: Path, data: bytes) -> None:
    make_tar(tmp_path / "s-0.tar", samples(0, 2))
    put(tmp_path / "s-1.tar", data)
    source = ShardImages(str(tmp_path / "s-*.tar"))
    assert len(source) == 2
    assert list(problems(source)) == ["s-1.tar"]
    with pytest.raises(DataError, match=r"no picture in these tar files; .*s-1\.tar: tar file: "):
        ShardImages(str(tmp_path / "s-1.tar"))


def test_a_shard_that_shrinks_after_it_was_indexed_gives_bad_pictures(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", samples(0, 3))
    source = ShardImages(str(path))
    path.write_bytes(path.read_bytes()[:BLOCK])
    with pytest.raises(BadImageError, match=r"s\.tar/02: cut off"):
        pixels(source, 2)
    path.unlink()
    with pytest.raises(BadImageError, match=r"s\.tar/00: No such file"):
        pixels(pickle.loads(pickle.dumps(source)), 0)


# -- processes and threads --------------------------------------------------------------------------------------------


def test_a_copy_in_another_process_reads_the_same(three_shards: str) -> None:
    source = ShardImages(three_shards)
    first = pixels(source, 0)  # opens a file, which does not travel
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(pixels(copy, 0), first)
    assert [copy.captions(index) for index in range(8)] == [source.captions(index) for index in range(8)]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on warns of it when threads run
def test_forked_workers_and_their_parent_do_not_move_each_others_files(three_shards: str) -> None:
    source = ShardImages(three_shards)
    expected = [source.captions(index) for index in range(8)]
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_read_often, args=(source, sender))
    worker.start()
    for _ in range(100):
        assert [source.captions(index) for index in range(8)] == expected
    assert receiver.recv() == expected
    worker.join()
    assert worker.exitcode == 0
    receiver.close()
    sender.close()


def _read_often(source: ShardImages, sender: multiprocessing.connection.Connection) -> None:
    found = {tuple(source.captions(index) for index in range(8)) for _ in range(100)}
    sender.send(list(found.pop()) if len(found) == 1 else None)


def test_threads_read_the_same_and_few_files_stay_open(three_shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_OPEN_AT_ONCE", 2)
    source = ShardImages(three_shards)
    indices = [random.Random(seed).randrange(8) for seed in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(source.captions, indices))
    assert found == [(f"picture {index}",) for index in indices]
    assert [source.captions(index) for index in indices] == found
    assert len(source._files.handles) == 2


# -- the rest of the contract -----------------------------------------------------------------------------------------


def test_fingerprint_follows_names_sizes_and_captions_but_not_the_place(tmp_path: Path, three_shards: str) -> None:
    here = ShardImages(three_shards).fingerprint
    assert ShardImages(str(make_tar(tmp_path / "all/s.tar", samples(0, 8)))).fingerprint == here
    for number, change in enumerate([("07.txt", b"picture 9\n"), ("07.png", PNG + b"\0"), ("09.png", PNG)]):
        members = dict(samples(0, 8)) | dict([change])
        source = ShardImages(str(make_tar(tmp_path / f"{number}/s.tar", list(members.items()))))
        assert source.fingerprint != here


def test_fingerprint_follows_the_field_that_captions_come_from(tmp_path: Path) -> None:
    member = ("00.json", b'{"long": "a long one", "short": "one", "text": "a text"}')
    path = str(make_tar(tmp_path / "s.tar", [("00.png", PNG), member]))
    fields = (None, "long", "short")
    assert len({ShardImages(path, caption_column=field).fingerprint for field in fields}) == 3


def test_indexing_tells_how_far_it_is(three_shards: str) -> None:
    told: list[tuple[int, int]] = []
    ShardImages(three_shards, on_shard=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_tar_file_with_an_empty_end_is_read_whole(tmp_path: Path) -> None:
    """Some writers leave the two zero blocks at the end out."""
    path = make_tar(tmp_path / "s.tar", samples(0, 2))
    start, size = offsets(path)["01.txt"]
    path.write_bytes(path.read_bytes()[: start + -(-size // BLOCK) * BLOCK])
    source = ShardImages(str(path))
    assert len(source) == 2
    assert source.problems == ()


def test_a_compressed_shard_is_refused_with_a_way_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz"):
        pass
    path = put(tmp_path / "s.tar.gz", buffer.getvalue())
    with pytest.raises(DataError, match=r"s\.tar\.gz: compressed") as raised:
        ShardImages(str(path))
    assert f"'pipe:gzip -dc {path}'" in str(raised.value.hint)
