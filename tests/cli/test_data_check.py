"""`star data check`: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star_cli.cli import console
from tests.cli.command import Star, Start
from tests.data.builders import encoded, make_folder, noise, put

PROBE = """
import sys
from star_cli.cli.app import app
try:
    app(sys.argv[1:], prog_name="star")
except SystemExit as end:
    print("exit code", end.code)
print("imported:", *sorted({"torch", "transformers", "numpy", "PIL", "datasets"} & set(sys.modules)))
"""


def imported(environment: dict[str, str], *arguments: object) -> str:
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_a_sound_folder_is_counted_and_the_exit_code_is_0(star: Star, folder: Path) -> None:
    make_folder(folder / "data", 3)
    result = star("data", "check", "data")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "pictures\t3\t\t\t",
        "without caption\t0\t\t\t",
        "bad files\t0\t\t\t",
        "captions\t3\t\t\t",
        "width\t\t40\t41\t42",
        "height\t\t32\t32\t32",
        "width / height\t\t1.25\t1.28\t1.31",
        "captions a picture\t\t1\t1\t1",
        "characters a caption\t\t9\t9\t9",
        "words a caption\t\t2\t2\t2",
    ]


def test_bad_files_are_listed_and_the_exit_code_is_1(star: Star, folder: Path) -> None:
    make_folder(folder / "data", 2)
    put(folder / "data/01.png", b"junk")
    (folder / "data/00.txt").unlink()
    result = star("data", "check", "data")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "01.png\tnot a picture that can be read"
    assert result.stderr == "warning: 1 of 1 pictures have no caption, first 00.png\n"
    quiet = star("data", "check", "data", "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (1, result.stdout, "")


def test_json_is_one_object(star: Star, folder: Path) -> None:
    make_folder(folder / "data", 2)
    put(folder / "data/bäd.png", b"junk")
    result = star("data", "check", "data", "--json")
    assert result.exit_code == 1
    (line,) = result.stdout.splitlines()
    report = json.loads(line)
    assert report["pictures"] == 2
    assert report["width"] == {"min": 40, "median": 40.5, "max": 41}
    assert report["bad"] == [{"name": "bäd.png", "reason": "not a picture that can be read"}]


def test_people_get_a_table(star: Star, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    make_folder(folder / "data", 2)
    put(folder / "data/[red]bad\x1b.png", b"junk")
    lines = star("data", "check", "data").stdout.splitlines()
    assert lines[0].split() == ["count", "min", "median", "max"]
    assert lines[1].split() == ["pictures", "2"]
    assert lines[-1].split() == ["[red]bad\\x1b.png", "not", "a", "picture", "that", "can", "be", "read"]


def test_columns_are_named_on_the_command_line(star: Star, folder: Path) -> None:
    put(folder / "data/a.png", encoded(noise(8, 8)))
    put(folder / "data/metadata.jsonl", '{"file_name": "a.png", "text": "x", "long": "three words here"}\n')
    result = star("data", "check", "data", "--caption-column", "long")
    assert "words a caption\t\t3\t3\t3" in result.stdout.splitlines()


def test_a_bad_line_of_metadata_is_an_error_with_its_number(star: Star, folder: Path) -> None:
    put(folder / "data/a.png", encoded(noise(8, 8)))
    put(folder / "data/metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": \n')
    result = star("data", "check", "data")
    assert (result.exit_code, result.stdout) == (2, "")
    expected = f"error: data{os.sep}metadata.jsonl, line 2: not JSON: Expecting value at column 15"
    assert result.stderr.splitlines()[0] == expected


def test_an_empty_folder_is_an_error_with_a_hint(star: Star, folder: Path) -> None:
    (folder / "data").mkdir()
    result = star("data", "check", "data")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: data: an empty folder\nhint: data is a folder of pictures, tar shards")


def test_generated_scenes_are_checked_too(star: Star) -> None:
    result = star("data", "check", "shapes:5")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("pictures\t5\t")
    assert "width" not in result.stdout


@pytest.mark.parametrize("where", ["icons", "icons:simple", "icons:full:150"])
def test_scenes_without_end_are_refused_before_any_icon_is_fetched(star: Star, where: str) -> None:
    result = star("data", "check", where)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {where}: scenes of icons are composed without end")
    assert "`star data scenes`" in result.stderr


def test_more_shapes_than_there_are_is_no_internal_error(star: Star) -> None:
    result = star("data", "check", "shapes:99999999999999999999")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "there are 1,000,000,000 scenes to learn from" in result.stderr


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_ctrl_c_ends_a_command_and_all_it_started(start: Start, folder: Path) -> None:
    process = start("data", "check", "pipe:sleep 1000 & echo $! > begun.new; mv begun.new begun; wait")
    while not (folder / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, stderr) == (130, b"", b"interrupted\n")
    sleeper = Path("/proc") / (folder / "begun").read_text().strip() / "stat"
    # gone, or ended and not yet collected by whoever collects orphans here
    assert not sleeper.exists() or sleeper.read_text().rpartition(")")[2].split()[0] == "Z"


def test_help_imports_nothing_heavy_and_a_check_no_torch(environment: dict[str, str], folder: Path) -> None:
    make_folder(folder / "data", 1)
    assert imported(environment, "data", "check", "--help") == "imported:"
    assert imported(environment, "data", "check", folder / "data") == "imported: PIL numpy"
