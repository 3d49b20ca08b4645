"""Commands as users call them: in this process, and as a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from star_cli.cli.app import app
from tests.cli.command import Star, Start

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "star_cli")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, and where its pictures go; empty."""
    path = tmp_path / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def star(folder: Path) -> Star:
    """Runs a command line in this process: `star("generate", "a red circle", input="")`."""

    def run(*arguments: object, input: str | bytes | None = None) -> Result:  # noqa: A002 - CliRunner's word
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)

    return run


@pytest.fixture
def draw(star: Star, tiny_model_folder: Path) -> Star:
    """`star generate` with the tiny model."""

    def run(*arguments: object, input: str | bytes | None = None) -> Result:  # noqa: A002
        return star("generate", *arguments, "--model", tiny_model_folder, input=input)

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """Of a process that runs the checkout; one thread, so that the tests beside it get on."""
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**usual, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def start(folder: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Starts `python -m star_cli` in the folder; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[bytes]] = []
    # A shell that runs the tests in the background has them, and all they start, ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(*arguments: str | bytes | Path, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [*COMMAND, *arguments]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield run
    signal.signal(signal.SIGINT, before)
    for process in started:
        with process:  # closes its pipes, and waits for it
            process.kill()
