"""Which files a set of shards is: braces, wildcards, and commands that are run once."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star_cli.data.shard_files import expand, find_shards, spool
from star_cli.data.shards import ShardImages
from star_cli.errors import DataError
from tests.data.builders import make_tar, put, samples

needs_shell = pytest.mark.skipif(shutil.which("sh") is None, reason="commands are for sh")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("a-{9..11}.tar", ["a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{0..2}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("a-{00..02}.tar", ["a-00.tar", "a-01.tar", "a-02.tar"]),
        ("{b,a}.tar", ["b.tar", "a.tar"]),
        ("{x,y}-{0..1}.tar", ["x-0.tar", "x-1.tar", "y-0.tar", "y-1.tar"]),
        ("{one}.tar", ["{one}.tar"]),
        ("{7..7}", ["7"]),
    ],
)
def test_braces_stand_for_names(pattern: str, names: list[str]) -> None:
    assert expand(pattern) == names


@pytest.mark.parametrize("pattern", ["a-{000..010}-{x,y}.tar", "{a,b}{c,d}", "{1..3}/{01..02}.tar", "{a-{0..1},b}.tar"])
def test_braces_mean_what_they_mean_to_webdataset(pattern: str) -> None:
    braceexpand = pytest.importorskip("braceexpand")
    assert expand(pattern) == list(braceexpand.braceexpand(pattern))


def test_a_range_that_counts_down_is_refused() -> None:
    with pytest.raises(DataError, match=r"\{3\.\.1\} counts down") as raised:
        expand("a-{3..1}.tar")
    assert raised.value.hint == "write {1..3}"


@pytest.mark.parametrize(
    "pattern", ["x{0..30000000}", "{0..999}{0..9999}", "{a,b}" * 40, "{0..999999}{a,b}", "{1.." + "9" * 5000 + "}"]
)
def test_more_names_than_anyone_has_are_refused_at_once(pattern: str) -> None:
    with pytest.raises(DataError, match="stands for more than 1,000,000 names") as raised:
        expand(pattern)
    assert "folder" in str(raised.value.hint)


def test_a_folder_is_its_tar_files(tmp_path: Path) -> None:
    for name in ("b.tar", "a.TAR", ".c.tar", "d.txt"):
        put(tmp_path / "x{1,2}" / name, b"x")
    assert [shard.path.name for shard in find_shards(str(tmp_path / "x{1,2}"))] == ["a.TAR", "b.tar"]
    put(tmp_path / "none/a.txt", b"x")
    with pytest.raises(DataError, match="no tar file in this folder"):
        find_shards(str(tmp_path / "none"))


def test_wildcards_find_files_in_order(tmp_path: Path) -> None:
    for name in ("b/2.tar", "a/1.tar", "a/0.tar", "a/x.txt"):
        put(tmp_path / name, b"x")
    assert [shard.path.name for shard in find_shards(str(tmp_path / "*" / "?.tar"))] == ["0.tar", "1.tar", "2.tar"]


def test_a_name_that_only_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    path = put(tmp_path / "a[1].tar", b"x")
    assert [shard.path for shard in find_shards(str(path))] == [path]


@pytest.mark.parametrize("name", ["gone-{0..1}.tar", "*.tar"])
def test_what_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"(gone-0|\*)\.tar: no such file"):
        find_shards(str(tmp_path / name))


# -- commands ---------------------------------------------------------------------------------------------------------


def cat(path: Path, runs: Path) -> str:
    """A command that writes a file, and a line each time it is run."""
    return f"pipe:echo run >> {shlex.quote(str(runs))}; cat {shlex.quote(str(path.parent))}/{path.name}"


@needs_shell
def test_what_a_command_writes_is_kept_and_read_like_a_file(tmp_path: Path) -> None:
    make_tar(tmp_path / "s-0.tar", samples(0, 2))
    make_tar(tmp_path / "s-1.tar", samples(2, 1))
    runs, folder = tmp_path / "runs", tmp_path / "kept"
    command = cat(tmp_path / "s-{0..1}.tar", runs)
    source = ShardImages(command, spool_folder=folder)
    assert [source.captions(index) for index in range(3)] == [("picture 0",), ("picture 1",), ("picture 2",)]
    assert source.name(2).endswith("s-1.tar/02")
    assert source.name(2).startswith("pipe:")
    assert len(list(folder.iterdir())) == 2
    again = ShardImages(command, spool_folder=folder)
    assert again.fingerprint == source.fingerprint
    assert again.fingerprint == ShardImages(str(tmp_path / "s-{0..1}.tar")).fingerprint
    assert runs.read_text() == "run\n" * 2  # once for each of the two shards


@needs_shell
def test_braces_of_the_shell_are_left_to_it(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", samples(0, 1))
    command = f"pipe:{{ true, 1; cat {shlex.quote(str(path))}; }}"
    assert len(ShardImages(command, spool_folder=tmp_path / "kept")) == 1


@needs_shell
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo part; echo 'no route' >&2; exit 3", r"ended with exit code 3: no route"),
        ("true", r"wrote nothing"),
        ("", r"without a command"),
    ],
)
def test_a_command_that_fails_is_an_error_and_leaves_nothing(tmp_path: Path, command: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        list(spool(f"pipe:{command}", tmp_path / "kept"))
    assert list(tmp_path.glob("kept/*")) == []


@needs_shell
def test_of_many_complaints_the_last_are_told(tmp_path: Path) -> None:
    complaints = r"for i in $(seq 2000); do printf '%d %%\r' $i >&2; done; echo >&2; echo 'no route' >&2; exit 7"
    with pytest.raises(DataError, match=r"exit code 7: 1999 %: 2000 %: no route$"):
        list(spool(f"pipe:{complaints}", tmp_path / "kept"))


@needs_shell
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    put(tmp_path / "file")
    with pytest.raises(DataError, match=r"cannot keep the output of pipe:echo x in .*file/kept"):
        list(spool("pipe:echo x", tmp_path / "file/kept"))


@needs_shell
def test_without_a_folder_the_files_go_when_the_process_ends(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", samples(0, 1))
    code = (
        "import sys\n"
        "from star_cli.data.shard_files import spool\n"
        "shard, = spool(sys.argv[1], None)\n"
        "assert shard.path.stat().st_size > 0\n"
        "print(shard.path)"
    )
    command = [sys.executable, "-c", code, f"pipe:cat {shlex.quote(str(path))}"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).parent.exists()
