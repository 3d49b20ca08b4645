"""`star batch` as a process: killed, interrupted, twice at once, on a full disk, with a large input.

What needs no process of its own runs in this one. Nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from star_cli.images import read_recipe
from tests.cli.command import Star, Start
from tests.cli.conftest import COMMAND

PATIENCE_S = 900.0
"""Longer means that a process hangs, not that the machine is busy."""
Run = Callable[..., "subprocess.Popen[bytes]"]
JOURNAL = "star-batch.jsonl"


@pytest.fixture
def run(start: Start, tiny_model_folder: Path) -> Run:
    """Starts `star batch` with the tiny model."""

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        return start("batch", *arguments, "--model", tiny_model_folder)

    return begin


@pytest.fixture
def here(star: Star, tiny_model_folder: Path) -> Star:
    """As `run`, in this process; `star batch` must succeed."""

    def run(*arguments: str) -> Result:
        result = star("batch", *arguments, "--model", tiny_model_folder)
        assert result.exit_code == 0, result.stderr
        return result

    return run


def write_prompts(folder: Path, count: int) -> str:
    (folder / "prompts.txt").write_text("".join(f"prompt {number}\n" for number in range(count)))
    return "prompts.txt"


def images_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def journalled(folder: Path) -> list[str]:
    lines = (folder / JOURNAL).read_text().splitlines() if (folder / JOURNAL).exists() else []
    return [json.loads(line)["file"] for line in lines if line.endswith("}")]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stdout, stderr


def test_killed_at_any_moment_it_goes_on_where_it_was(run: Run, here: Star, folder: Path) -> None:
    write_prompts(folder, 5000)  # so many that no process comes to the end before it is killed
    chance = random.Random(0)
    out = folder / "out"
    for _ in range(3):
        process = run("prompts.txt", "--out", "out", "--batch-size", "4")
        wanted = len(journalled(out)) + chance.randrange(1, 12)
        wait_for(lambda: len(journalled(out)) >= wanted, process)  # noqa: B023 - called at once
        time.sleep(chance.random() / 20)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    before = journalled(out)
    count = len(before) + 20
    name = write_prompts(folder, count)
    result = here(name, "--out", "out")
    assert "cleaned up after a run that was stopped" in result.stderr
    files = journalled(out)
    assert len(files) == len(set(files)) == count  # none was drawn again after it was journalled
    assert not set(result.stdout.split()) & {f"out/{file}" for file in before}
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, JOURNAL])
    here(name, "--out", "whole")
    assert images_in(folder / "whole") == images_in(out)


def test_two_processes_on_one_folder_share_the_work(run: Run, here: Star, folder: Path) -> None:
    name = write_prompts(folder, 60)
    processes = [run(name, "--out", "out", "--batch-size", size) for size in ("1", "3")]
    ends = [finish(process) for process in processes]
    assert [code for code, _, _ in ends] == [0, 0], ends
    drawn = [set(stdout.decode().split()) for _, stdout, _ in ends]
    assert not drawn[0] & drawn[1]
    assert {f"out/{file}" for file in journalled(folder / "out")} == drawn[0] | drawn[1]
    assert len(journalled(folder / "out")) == 60
    here(name, "--out", "alone")
    assert images_in(folder / "alone") == images_in(folder / "out")


def test_devices_share_the_work_in_processes_of_their_own(run: Run, here: Star, folder: Path) -> None:
    name = write_prompts(folder, 30)
    code, stdout, stderr = finish(run(name, "--out", "out", "--devices", "cpu,cpu", "--batch-size", "2"))
    assert code == 0, stderr
    assert stdout.decode().split() == [f"out/{number + 1:05d}-prompt-{number}-0.png" for number in range(30)]
    assert len(journalled(folder / "out")) == 30
    here(name, "--out", "alone")
    assert images_in(folder / "alone") == images_in(folder / "out")


def test_devices_round_weights_each(run: Run, here: Star, folder: Path) -> None:
    name = write_prompts(folder, 3)
    code, _, stderr = finish(run(name, "--out", "out", "--devices", "cpu,cpu", "--quantize", "int8"))
    assert code == 0, stderr
    assert {read_recipe(path)["quantize"] for path in (folder / "out").glob("*.png")} == {"int8"}
    here(name, "--out", "alone", "--quantize", "int8")
    assert images_in(folder / "alone") == images_in(folder / "out")


def test_rounding_that_a_device_cannot_do_is_told_once(run: Run, folder: Path) -> None:
    name = write_prompts(folder, 3)
    code, stdout, stderr = finish(run(name, "--out", "out", "--devices", "cpu,cpu", "--quantize", "fp8"))
    assert (code, stdout) == (2, b"")
    assert stderr.decode().splitlines() == [
        "error: fp8 is there on an NVIDIA GPU only, not on cpu",
        "hint: use --quantize none, or int8",
    ]


def test_signals_end_it_in_good_order_or_at_once(run: Run, folder: Path) -> None:
    name = write_prompts(folder, 5000)
    signals = {"int": [signal.SIGINT], "term": [signal.SIGTERM], "twice": [signal.SIGINT, signal.SIGINT]}
    processes = {out: run(name, "--out", out, "--contact-sheet", f"{out}.png") for out in signals}
    for out, process in processes.items():
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"{out}/00001-".encode())
        for number in signals[out]:
            process.send_signal(number)
            time.sleep(0.01)  # for the second one may come at any moment of the first one's work, but not with it
        code, _, stderr = finish(process)
        assert (code, stderr.splitlines()[-1]) == (130, b"interrupted"), stderr
        assert not (folder / f"{out}.png").exists()
        images = folder / out
        assert sorted(images_in(images)) == sorted(journalled(images)) or out == "twice"
        assert all(read_recipe(path)["seed"] == 0 for path in images.glob("*.png"))
        if out != "twice":
            assert b"missing" in stderr
            assert not (images / ".star").exists()


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(number) for task in tasks for number in task.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_ctrl_c_while_the_processes_of_devices_begin_is_one_word(run: Run, folder: Path) -> None:
    process = run(write_prompts(folder, 5000), "--out", "out", "--devices", "cpu,cpu")
    wait_for(lambda: len(children_of(process)) >= 3, process)  # one for each device, one of Python's own
    time.sleep(0.3)  # they import, and for long
    for number in (*children_of(process), process.pid):  # as a terminal does
        os.kill(number, signal.SIGINT)
    code, _, stderr = finish(process)
    assert (code, stderr.splitlines()[-1]) == (130, b"interrupted"), stderr
    assert b"Traceback" not in stderr


def test_a_full_disk_is_told_and_the_next_call_goes_on(
    here: Star, folder: Path, environment: dict[str, str], tiny_model_folder: Path
) -> None:
    """A limit on the size of files stands for the disk: the journal reaches it after some images."""
    name = write_prompts(folder, 30)
    limit = 6000  # bytes: more than an image, less than the journal of 30

    def with_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [*COMMAND, "batch", name, "--out", "out", "--model", str(tiny_model_folder)]
    limits: dict[str, Any] = {"preexec_fn": with_limit, "timeout": PATIENCE_S, "cwd": folder, "env": environment}
    done = subprocess.run(command, capture_output=True, check=False, **limits)
    assert done.returncode == 1
    assert b"error: cannot write" in done.stderr
    files = journalled(folder / "out")
    assert 0 < len(files) < 30
    assert not (folder / "out" / ".star").exists()
    here(name, "--out", "out")
    assert len(journalled(folder / "out")) == 30


def test_input_that_changes_while_it_runs_changes_nothing(run: Run, folder: Path) -> None:
    name = write_prompts(folder, 40)
    process = run(name, "--out", "out", "--batch-size", "1")
    wait_for((folder / "out" / JOURNAL).exists, process)
    (folder / name).write_text("something else\n")
    code, stdout, stderr = finish(process)
    assert (code, stdout.count(b"\n")) == (0, 40), stderr


def test_a_hundred_thousand_lines_are_read_without_torch_in_little_memory(
    folder: Path, environment: dict[str, str], tiny_model_folder: Path
) -> None:
    kilobytes = {}
    for count in (10, 100_000):
        name = write_prompts(folder, count)
        code = f"""
import resource, sys
from star_cli.cli import batch
from star_cli.batch.template import NameTemplate
plan = batch._read({name!r}, None, {{"model": {str(tiny_model_folder)!r}}}, NameTemplate())
first = next(plan.jobs())
usage = resource.getrusage(resource.RUSAGE_SELF)
print(len(plan), usage.ru_maxrss, "torch" in sys.modules)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        lines, used_kb, has_torch = done.stdout.split()
        assert (int(lines), has_torch) == (count, "False")
        kilobytes[count] = int(used_kb)
    assert kilobytes[100_000] - kilobytes[10] < 60_000
