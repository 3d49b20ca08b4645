"""The folder of a batch: claims, what is found there, repairs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.batch.claims import Claims, started, this_host
from star_cli.batch.folder import HIDDEN, BatchFolder
from star_cli.batch.plan import Job
from star_cli.batch.template import JOURNAL_FILE
from star_cli.errors import OutputError, OutputPathError
from star_cli.images import encode_image
from tests.batch.conftest import PlanOf, RunBatch, images_in, leftovers


@pytest.fixture
def job(plan_of: PlanOf) -> Job:
    return next(plan_of("a red circle").jobs())


def claim(folder: BatchFolder, job: Job) -> str:
    with folder.locked():
        return folder.claim(job)[0]


def dead_process() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def leave_claim(path: Path, job: Job, host: str, pid: int, since: str = "", age_s: float = 0.0) -> Path:
    """What a process that was killed leaves behind; the folder of its run."""
    run = path / HIDDEN / "runs" / "other"
    run.mkdir(parents=True)
    (run / "alive").write_text(json.dumps({"host": host, "pid": pid, "started": since}))
    (run / ".half.star-tmp").write_bytes(b"half")
    os.utime(run / "alive", (time.time() - age_s,) * 2)
    (path / HIDDEN / "claims").mkdir()
    (path / HIDDEN / "claims" / job.hash).write_text("other")
    return run


def test_a_job_is_claimed_once_until_it_is_given_back(tmp_path: Path, job: Job) -> None:
    with BatchFolder(tmp_path / "out") as one, BatchFolder(tmp_path / "out") as other:
        assert claim(one, job) == "todo"
        assert claim(other, job) == "taken"
        one.release(job)
        assert claim(other, job) == "todo"
    assert leftovers(tmp_path) == []
    assert list((tmp_path / "out").iterdir()) == []


def test_claims_of_a_dead_process_count_for_nothing(tmp_path: Path, job: Job) -> None:
    run = leave_claim(tmp_path, job, this_host(), dead_process())
    with BatchFolder(tmp_path) as folder:
        assert not run.exists()
        assert folder.messages == ["cleaned up after a run that was stopped"]
        assert claim(folder, job) == "todo"
    assert leftovers(tmp_path) == []


def test_claims_of_a_process_at_work_are_respected(tmp_path: Path, job: Job) -> None:
    run = leave_claim(tmp_path, job, this_host(), os.getpid(), started(os.getpid()), age_s=1e6)
    with BatchFolder(tmp_path) as folder:
        assert claim(folder, job) == "taken"
        assert (run / ".half.star-tmp").exists()


@pytest.mark.skipif(not started(os.getpid()), reason="the system does not say when a process began")
def test_another_process_of_the_same_number_is_not_the_one_that_claimed(tmp_path: Path, job: Job) -> None:
    leave_claim(tmp_path, job, this_host(), os.getpid(), "1")
    with BatchFolder(tmp_path) as folder:
        assert claim(folder, job) == "todo"


@pytest.mark.parametrize(("age_s", "state"), [(10.0, "taken"), (10_000.0, "todo")])
def test_another_machine_is_dead_when_it_is_silent(tmp_path: Path, job: Job, age_s: float, state: str) -> None:
    leave_claim(tmp_path, job, "elsewhere/1", 1, age_s=age_s)
    with BatchFolder(tmp_path) as folder:
        assert claim(folder, job) == state


def test_a_claim_that_a_crash_left_empty_counts_for_nothing(tmp_path: Path, job: Job) -> None:
    (tmp_path / HIDDEN / "claims").mkdir(parents=True)
    (tmp_path / HIDDEN / "claims" / job.hash).touch()
    with BatchFolder(tmp_path) as folder:
        assert claim(folder, job) == "todo"


def test_alive_is_touched_while_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star_cli.batch.claims.BEAT_S", 0.01)
    claims = Claims(tmp_path)
    claims.register()
    alive = claims.scratch / "alive"
    os.utime(alive, (0, 0))
    deadline = time.monotonic() + 120
    while alive.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert alive.stat().st_mtime > 0
    claims.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_never_overwritten(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    (tmp_path / "x.png").write_bytes(b"mine")
    summary, _ = run_batch(plan_of("x", template="{slug}"), tmp_path)
    assert summary.done == 1
    assert (tmp_path / "x.png").read_bytes() == b"mine"
    assert (tmp_path / "x-2.png").exists()


def test_an_image_that_no_journal_tells_of_is_recognised(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    plan = plan_of("x\nx\ny")
    run_batch(plan, tmp_path)
    before = images_in(tmp_path)
    (tmp_path / JOURNAL_FILE).unlink()
    summary, events = run_batch(plan, tmp_path)
    assert (summary.done, summary.kept, [event.kind for event in events]) == (0, 3, ["kept"] * 3)
    assert images_in(tmp_path) == before
    assert (tmp_path / JOURNAL_FILE).read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("damage", ["cut", "garbage", "version", "empty line", "all"])
def test_a_damaged_journal_is_repaired_from_the_images(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch, damage: str
) -> None:
    plan = plan_of("x\ny\nz\nx\n")
    run_batch(plan, tmp_path)
    before, path = images_in(tmp_path), tmp_path / JOURNAL_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-1] = {
        "cut": lines[-1][:40],
        "garbage": b"\x00\xffgarbage\n",
        "version": lines[-1].replace(b'"v": 1', b'"v": 9'),
        "empty line": b"{}\n" + lines[-1],
        "all": lines[-1],
    }[damage]
    path.write_bytes(b"?\n" * 4 if damage == "all" else b"".join(lines))
    damaged = path.read_bytes()
    with BatchFolder(tmp_path) as folder:
        (message,) = folder.messages
        assert "could not be read" in message
        assert len(folder.journal.records) == 4
    assert path.with_suffix(".damaged.jsonl").read_bytes() == damaged
    summary, _ = run_batch(plan, tmp_path)
    assert (summary.done, summary.kept) == (0, 4)
    assert images_in(tmp_path) == before
    with BatchFolder(tmp_path) as folder:
        assert folder.messages == []


def test_a_damaged_image_without_a_record_is_not_taken_for_done(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch
) -> None:
    plan = plan_of("x\ny\n", template="{slug}")
    run_batch(plan, tmp_path)
    before = images_in(tmp_path)
    data = before["x.png"]
    (tmp_path / "x.png").write_bytes(data[:-40] + bytes(28) + data[-12:])
    (tmp_path / JOURNAL_FILE).write_bytes(b"?\n")
    summary, _ = run_batch(plan, tmp_path)
    assert (summary.done, summary.kept) == (1, 1)
    assert images_in(tmp_path)["x-2.png"] == before["x.png"]


def test_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputPathError, match="is a file, not a folder"), BatchFolder(tmp_path / "file"):
        pass
    with pytest.raises(OutputPathError, match="there is no folder"), BatchFolder(tmp_path / "none" / "deep"):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_unwritable_folder_is_refused() -> None:
    with pytest.raises(OutputPathError, match="cannot write into /proc"), BatchFolder(Path("/proc")):
        pass


def test_a_folder_that_is_gone_is_told_and_not_made_anew(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "out"
    with BatchFolder(path) as folder:
        path.rename(tmp_path / "moved")
        with pytest.raises(OutputError, match="is gone"):
            claim(folder, job)
    assert not path.exists()


def test_a_link_that_leads_nowhere_is_somebodys(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "nowhere.png")
    summary, _ = run_batch(plan_of("x", template="{slug}"), tmp_path)
    assert summary.done == 1
    assert (tmp_path / "x.png").is_symlink()
    assert not (tmp_path / "nowhere.png").exists()
    assert (tmp_path / "x-2.png").is_file()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second disk")
def test_a_folder_inside_may_be_on_another_disk(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("it is the same disk")
        (tmp_path / "deep").symlink_to(other)
        plan = plan_of("x\ny\n", template="deep/{slug}")
        assert run_batch(plan, tmp_path)[0].done == 2
        assert sorted(path.name for path in Path(other).iterdir()) == ["x.png", "y.png"]
        assert run_batch(plan, tmp_path)[0].kept == 2


def test_a_disk_that_fills_while_jobs_are_claimed_is_told(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, text: str, encoding: str) -> int:
        raise OSError(28, "No space left on device")

    leave = tmp_path / HIDDEN / "claims"
    leave.mkdir(parents=True)
    (leave / job.hash).touch()  # of a dead run: taken over, and written anew
    with BatchFolder(tmp_path) as folder:
        (leave / job.hash).touch()
        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            claim(folder, job)
        assert caught.value.hint == "make room on the disk, or use another folder"
        monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", [{"prompt": ["x"]}, {"prompt": "x", "seed": "no"}, {"prompt": "x", "res": 1.5}])
def test_a_picture_with_an_odd_recipe_is_passed_over(tmp_path: Path, recipe: dict[str, Any]) -> None:
    (tmp_path / "odd.png").write_bytes(encode_image(torch.zeros(8, 8, 3, dtype=torch.uint8), recipe, "png"))
    (tmp_path / JOURNAL_FILE).write_bytes(b"?\n")
    for messages in (1, 0):
        with BatchFolder(tmp_path) as folder:
            assert (len(folder.messages), folder.journal.records) == (messages, {})


def test_redo_goes_on_when_another_process_repairs_the_journal(
    tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch
) -> None:
    plan = plan_of("x\ny\n")
    run_batch(plan, tmp_path)
    job, _ = plan.jobs()
    with BatchFolder(tmp_path) as folder:
        with (tmp_path / JOURNAL_FILE).open("ab") as journal:
            journal.write(b'{"v": 1, "jo')
        with BatchFolder(tmp_path) as other:
            assert len(other.messages) == 1
        with folder.locked():
            assert folder.claim(job, again=True)[0] == "todo"
