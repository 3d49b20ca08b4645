"""Help and version: quick, complete, and without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import star_cli
from tests.cli.command import Star

HEAVY = "torch transformers open_clip numpy PIL rich"
FLAGS = """
    res model seed num guidance top-k top-p temperature negative out format device dtype speed from-image
    force json quiet debug
"""
PROBE = f"""
import sys
from star_cli.cli.app import app
try:
    app(sys.argv[1:], prog_name="star")
except SystemExit:
    pass
print("imported:", *sorted(set("{HEAVY}".split()) & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["generate", "--help"],
        ["batch", "--help"],
        ["bench", "--help"],
        ["bench", "--batch-sizes", "0"],
        ["generate", "x", "--seed", "-1"],
        ["batch", "none.txt"],
        ["batch", __file__, "--input-format", "text", "--dry-run"],
    ],
)
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


def test_help_names_every_command(star: Star) -> None:
    result = star("--help")
    assert result.exit_code == 0
    listed = result.stdout.partition("Commands:")[2].split()
    commands = "generate batch sheet info models doctor bench config man data train finetune weights"
    assert set(commands.split()) <= set(listed)


def test_star_alone_shows_help(star: Star) -> None:
    assert star().stdout == star("--help").stdout


def test_every_flag_of_generate_is_explained(star: Star) -> None:
    text = star("generate", "--help").stdout
    for flag in FLAGS.split():
        assert f"--{flag}" in text


def test_version(star: Star) -> None:
    assert star("--version").stdout == f"star {star_cli.__version__}\n"


def test_module_runs_as_the_command(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "star_cli", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"star {star_cli.__version__}\n"
    assert done.stderr == ""
