"""`star batch` as a process: killed, interrupted, twice at once, on a full disk, with a large input."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from star_cli.images import read_recipe
from tests.cli.command import Start

Run = Callable[..., "subprocess.Popen[bytes]"]
JOURNAL = "star-batch.jsonl"


@pytest.fixture
def run(start: Start, tiny_model_folder: Path) -> Run:
    """Starts `star batch` with the tiny model."""

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        return start("batch", *arguments, "--model", tiny_model_folder)

    return begin


def write_prompts(folder: Path, count: int) -> str:
    (folder / "prompts.txt").write_text("".join(f"prompt {number}\n" for number in range(count)))
    return "prompts.txt"


def images_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def journalled(folder: Path) -> list[str]:
    lines = (folder / JOURNAL).read_text().splitlines() if (folder / JOURNAL).exists() else []
    return [json.loads(line)["file"] for line in lines if line.endswith("}")]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    stdout, stderr = process.communicate(timeout=240)
    return process.returncode, stdout, stderr


def test_killed_at_any_moment_it_goes_on_where_it_was(run: Run, folder: Path) -> None:
    name = write_prompts(folder, 60)
    chance = random.Random(0)
    out = folder / "out"
    for _ in range(3):
        process = run(name, "--out", "out", "--batch-size", "4")
        wanted = len(journalled(out)) + chance.randrange(1, 12)
        wait_for(lambda: len(journalled(out)) >= wanted, process)  # noqa: B023 - called at once
        time.sleep(chance.random() / 20)
        process.kill()
        process.wait()
    before = journalled(out)
    code, stdout, stderr = finish(run(name, "--out", "out"))
    assert code == 0, stderr
    assert b"cleaned up after a run that was stopped" in stderr
    files = journalled(out)
    assert len(files) == len(set(files)) == 60  # none was drawn again after it was journalled
    assert not set(stdout.decode().split()) & {f"out/{file}" for file in before}
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, JOURNAL])
    assert finish(run(name, "--out", "whole"))[0] == 0
    assert images_in(folder / "whole") == images_in(out)


def test_two_processes_on_one_folder_share_the_work(run: Run, folder: Path) -> None:
    name = write_prompts(folder, 60)
    ends = [finish(process) for process in [run(name, "--out", "out", "--batch-size", size) for size in ("1", "3")]]
    assert [code for code, _, _ in ends] == [0, 0], ends
    drawn = [set(stdout.decode().split()) for _, stdout, _ in ends]
    assert not drawn[0] & drawn[1]
    assert {f"out/{file}" for file in journalled(folder / "out")} == drawn[0] | drawn[1]
    assert len(journalled(folder / "out")) == 60
    assert finish(run(name, "--out", "alone"))[0] == 0
    assert images_in(folder / "alone") == images_in(folder / "out")


def test_devices_share_the_work_in_processes_of_their_own(run: Run, folder: Path) -> None:
    name = write_prompts(folder, 30)
    code, stdout, stderr = finish(run(name, "--out", "out", "--devices", "cpu,cpu", "--batch-size", "2"))
    assert code == 0, stderr
    assert stdout.decode().split() == [f"out/{number + 1:05d}-prompt-{number}-0.png" for number in range(30)]
    assert len(journalled(folder / "out")) == 30
    assert finish(run(name, "--out", "alone"))[0] == 0
    assert images_in(folder / "alone") == images_in(folder / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_good_order(run: Run, folder: Path, number: signal.Signals) -> None:
    process = run(write_prompts(folder, 5000), "--out", "out")
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"out/00001-")
    sent = time.monotonic()
    process.send_signal(number)
    code, _, stderr = finish(process)
    assert (code, stderr.splitlines()[-1]) == (130, b"interrupted")
    assert time.monotonic() - sent < 30  # 5 s and more, for a busy machine
    assert b"missing" in stderr
    out = folder / "out"
    assert sorted(images_in(out)) == sorted(journalled(out))
    assert not (out / ".star").exists()
    assert all(read_recipe(path)["seed"] == 0 for path in out.glob("*.png"))


def test_a_second_signal_ends_it_at_once(run: Run, folder: Path) -> None:
    process = run(write_prompts(folder, 5000), "--out", "out")
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    code, _, stderr = finish(process)
    assert (code, stderr.splitlines()[-1]) == (130, b"interrupted")


def test_a_full_disk_is_told_and_the_next_call_goes_on(
    run: Run, folder: Path, environment: dict[str, str], tiny_model_folder: Path
) -> None:
    """A limit on the size of files stands for the disk: the journal reaches it after some images."""
    name = write_prompts(folder, 30)
    limit = 6000  # bytes: more than an image, less than the journal of 30

    def with_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "star_cli", "batch", name, "--out", "out", "--model", str(tiny_model_folder)]
    done = subprocess.run(
        command, cwd=folder, env=environment, preexec_fn=with_limit, capture_output=True, check=False, timeout=240
    )
    assert done.returncode == 1
    assert b"error: cannot write" in done.stderr
    files = journalled(folder / "out")
    assert 0 < len(files) < 30
    assert not (folder / "out" / ".star").exists()
    code, _, stderr = finish(run(name, "--out", "out"))
    assert code == 0, stderr
    assert len(journalled(folder / "out")) == 30


def test_input_that_changes_while_it_runs_changes_nothing(run: Run, folder: Path) -> None:
    name = write_prompts(folder, 40)
    process = run(name, "--out", "out", "--batch-size", "1")
    wait_for((folder / "out" / JOURNAL).exists, process)
    (folder / name).write_text("something else\n")
    code, stdout, stderr = finish(process)
    assert (code, stdout.count(b"\n")) == (0, 40), stderr


def test_a_hundred_thousand_lines_start_at_once(
    folder: Path, environment: dict[str, str], tiny_model_folder: Path
) -> None:
    """In seconds of this process's CPU, which a busy machine does not change much."""
    seconds, kilobytes = {}, {}
    for count in (10, 100_000):
        name = write_prompts(folder, count)
        code = f"""
import resource, sys
from star_cli.cli import batch
from star_cli.batch.template import NameTemplate
plan = batch._read({name!r}, None, {{"model": {str(tiny_model_folder)!r}}}, NameTemplate())
first = next(plan.jobs())
usage = resource.getrusage(resource.RUSAGE_SELF)
print(len(plan), usage.ru_utime + usage.ru_stime, usage.ru_maxrss, "torch" in sys.modules)
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        lines, used_s, used_kb, has_torch = done.stdout.split()
        assert (int(lines), has_torch) == (count, "False")
        seconds[count], kilobytes[count] = float(used_s), int(used_kb)
    assert seconds[100_000] < 3
    assert kilobytes[100_000] - kilobytes[10] < 60_000
