"""The scripts in examples/ run as they stand; a tiny model takes the place of the shipped one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from star_cli.images import read_recipe

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
RUN_HERE = {
    "ci-job.sh",
    "pipe-to-magick.sh",
    "seeds-of-a-prompt.sh",
    "sheet-per-list.sh",
    "wallpaper-of-the-day.sh",
}
Script = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.fixture
def script(tmp_path: Path, tiny_model_folder: Path) -> Script:
    """Runs a script in an empty folder, with `star` of this checkout."""
    programs = tmp_path / "bin"
    programs.mkdir()
    star = programs / "star"
    star.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m star_cli "$@"\n')
    star.chmod(0o755)
    (tmp_path / "here").mkdir()
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "STAR_MODEL": str(tiny_model_folder),
    }

    def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(EXAMPLES / name), *arguments],
            cwd=tmp_path / "here",
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    return run


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


def test_every_example_is_run_here_and_may_be_executed() -> None:
    assert {path.name for path in EXAMPLES.iterdir()} == RUN_HERE
    assert all(os.access(path, os.X_OK) for path in EXAMPLES.iterdir())


def test_wallpaper_of_the_day(script: Script, here: Path) -> None:
    first = script("wallpaper-of-the-day.sh")
    assert (first.returncode, first.stdout, first.stderr) == (0, "wallpapers/today.png\n", "")
    today = here / "wallpapers" / "today.png"
    assert str(read_recipe(today)["seed"]) == today.resolve().stem
    assert script("wallpaper-of-the-day.sh").returncode == 0  # a second call on the same day


def test_sheet_per_list(script: Script, here: Path) -> None:
    (here / "birds.txt").write_text("a red bird\na blue bird\n")
    done = script("sheet-per-list.sh", "birds.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "sheets/birds.png\n", "")
    assert len(list((here / "images" / "birds").glob("*.png"))) == 2
    with Image.open(here / "sheets" / "birds.png") as sheet:
        assert sheet.width > 2 * 192


def test_ci_job_draws_its_part_and_refuses_bad_input(script: Script, here: Path) -> None:
    (here / "prompts.txt").write_text("a\nb\nc\n")
    done = script("ci-job.sh", "prompts.txt", "out", PART="2", PARTS="2")
    assert (done.returncode, done.stdout) == (0, "all done\n"), done.stderr
    assert [path.name for path in (here / "out").glob("*.png")] == ["00002-b-0.png"]
    (here / "bad.csv").write_text("prompt,sed\nx,1\n")
    assert script("ci-job.sh", "bad.csv", "bad").returncode == 2
    assert not (here / "bad").exists()


def has_image_magick() -> bool:
    program = shutil.which("magick") or shutil.which("convert")
    if program is None:
        return False
    return b"ImageMagick" in subprocess.run([program, "-version"], capture_output=True, check=False).stdout


@pytest.mark.skipif(not has_image_magick(), reason="no ImageMagick")
def test_pipe_to_magick(script: Script, here: Path) -> None:
    done = script("pipe-to-magick.sh", "a red circle", "framed.png")
    assert (done.returncode, done.stdout) == (0, "framed.png\n"), done.stderr
    with Image.open(here / "framed.png") as framed:
        assert framed.size == (32 + 32, 32 + 32)


def test_seeds_of_a_prompt(script: Script, here: Path) -> None:
    done = script("seeds-of-a-prompt.sh", "a red circle", "4", "2", "64")
    assert (done.returncode, done.stdout.split()) == (0, ["seeds.png", "chosen-2.png"]), done.stderr
    assert sorted(path.name for path in (here / "seeds").glob("*.png")) == ["000.png", "001.png", "002.png", "003.png"]
    assert read_recipe(here / "chosen-2.png")["res"] == 64
