"""Checkpoints: whole or not there, newest and best kept, damaged ones passed over, changed settings told."""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from star_cli.errors import OptionError, TrainingError
from star_cli.models.config import Config
from star_cli.training.checkpoint import FORMAT, OLD_NAME, list_checkpoints
from star_cli.training.loop import TrainingRun, is_finished, train_stage
from tests.training.tiny_stages import LOOP, Line, Painter, equal


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    train_stage(Line(), replace(LOOP, keep_last=3), tmp_path)
    assert names(tmp_path) == [f"checkpoint-0000000{step}.pt" for step in (7, 6, 5)]


@pytest.mark.parametrize(("metric", "decay", "best"), [("rate", "none", 1), ("-rate", "cosine", 2)])
def test_the_best_is_kept_as_well(tmp_path: Path, metric: str, decay: Any, best: int) -> None:
    train_stage(Line(), replace(LOOP, keep_last=1, keep_best=metric, decay=decay), tmp_path)
    assert names(tmp_path) == ["checkpoint-00000007.pt", f"checkpoint-0000000{best}.pt"]


def test_an_unknown_metric_to_keep_by_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no metric psnr"):
        train_stage(Line(), replace(LOOP, keep_best="psnr"), tmp_path)
    assert names(tmp_path) == ["checkpoint-00000001.pt"]


@pytest.mark.parametrize("named", [True, False])
def test_another_metric_to_keep_by_is_not_compared_with_the_former(tmp_path: Path, named: bool) -> None:
    """The rate is smaller than any loss. A checkpoint that does not say which metric it was keeps its best."""
    train_stage(Line(), replace(LOOP, keep_last=1, keep_best="rate", decay="none"), tmp_path)
    if not named:
        path = tmp_path / "checkpoint-00000007.pt"
        state = torch.load(path, weights_only=True)
        assert state["best"].pop("metric") == "rate"
        torch.save(state, path)
    train_stage(Line(), replace(LOOP, keep_last=1, keep_best="loss", decay="none", steps=9), tmp_path)
    assert ("checkpoint-00000001.pt" in names(tmp_path)) == (not named)


class Judged(Line):
    """Tells how good it is when it is asked, at last that it is no number."""

    is_judged = True

    def evaluate(self) -> dict[str, float]:
        self.asked = getattr(self, "asked", 0) + 1
        return {"held-out": [3.0, 5.0, math.nan][min(self.asked, 3) - 1]}


def test_the_best_by_an_evaluation_is_kept_though_not_every_save_has_one(tmp_path: Path) -> None:
    loop = replace(LOOP, keep_last=1, keep_best="-held-out", evaluate_every=2, save_every=1)
    train_stage(Judged(), loop, tmp_path)
    assert names(tmp_path) == ["checkpoint-00000007.pt", "checkpoint-00000004.pt"]


def test_a_metric_that_no_evaluation_gives_is_named_once_the_work_is_on_disk(tmp_path: Path) -> None:
    loop = replace(LOOP, keep_best="psnr", evaluate_every=3, save_every=2)
    with pytest.raises(OptionError, match="no metric psnr"):
        train_stage(Judged(), loop, tmp_path)
    assert names(tmp_path)[0] == "checkpoint-00000004.pt"  # the first save after an evaluation


def test_failed_save_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(Line(), LOOP, tmp_path)
    run.save()
    before = list_checkpoints(tmp_path)[0].read_bytes()

    def full(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run.step = 1
    with pytest.raises(TrainingError, match="No space left"):
        run.save()
    assert [path.name for path in tmp_path.iterdir()] == names(tmp_path)
    assert list_checkpoints(tmp_path)[0].read_bytes() == before


def test_a_disk_that_fills_up_while_saving_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    """The system itself refuses to write past a size: torch's writer, not a stand-in, meets the error."""
    whole, stopped, resumed = Painter(), Painter(), Painter()
    train_stage(whole, LOOP, tmp_path / "whole")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = list_checkpoints(tmp_path / "whole")[0].stat().st_size

    def fill(progress: Any) -> None:
        if progress.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))

    try:
        with pytest.raises(TrainingError, match=r"cannot save .*00000003.pt: File too large") as caught:
            train_stage(stopped, replace(LOOP, workers=0), tmp_path / "full", fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "space" in (caught.value.hint or "")
    assert names(tmp_path / "full") == ["checkpoint-00000002.pt", "checkpoint-00000001.pt"]
    train_stage(resumed, LOOP, tmp_path / "full")
    assert equal(whole, resumed)


@pytest.mark.parametrize("left", [0, 100, 0.5, 0.99])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, left: float) -> None:
    whole, resumed = Line(), Line()
    train_stage(whole, LOOP, tmp_path)
    newest = list_checkpoints(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[: int(left if left > 1 else left * newest.stat().st_size)])
    assert not is_finished(tmp_path, LOOP)
    notes: list[str] = []
    train_stage(resumed, LOOP, tmp_path, on_note=notes.append)
    assert "checkpoint-00000007.pt cannot be read" in notes[0]
    assert equal(whole, resumed)
    assert is_finished(tmp_path, LOOP)


def test_a_run_without_any_readable_checkpoint_does_not_start_over(tmp_path: Path) -> None:
    train_stage(Line(), LOOP, tmp_path)
    for path in list_checkpoints(tmp_path):
        path.write_bytes(b"PK")
    with pytest.raises(TrainingError, match=r"no checkpoint in .* can be read"):
        train_stage(Line(), LOOP, tmp_path)


def test_a_run_killed_at_random_moments_ends_in_the_same_weights(tmp_path: Path) -> None:
    # in a new process: no fork of one where torch's compiler has run can go backward
    process = multiprocessing.get_context("spawn").Process(target=_kill_at_random_moments, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 0


def _kill_at_random_moments(tmp_path: Path) -> None:
    loop = replace(LOOP, steps=30, workers=0)
    whole, killed = Painter(), Painter()
    train_stage(whole, loop, tmp_path / "whole")
    context = multiprocessing.get_context("fork")
    moments = torch.rand(4, generator=torch.Generator().manual_seed(0)).tolist()
    kills = 0
    for moment in moments:
        child = context.Process(target=_train_and_leave, args=(loop, tmp_path / "killed"))
        child.start()
        time.sleep(0.02 + 0.3 * moment)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
    assert kills > 0
    train_stage(killed, loop, tmp_path / "killed")
    assert equal(whole, killed)
    assert not list((tmp_path / "killed").glob("*.tmp"))


def _train_and_leave(loop: Any, folder: Path) -> None:
    train_stage(Painter(), loop, folder)
    os._exit(0)


# -- resume -----------------------------------------------------------------------------------------------------------


def test_resume_never_refuses_a_folder_with_a_run(tmp_path: Path) -> None:
    train_stage(Line(), LOOP, tmp_path, resume="never")
    with pytest.raises(TrainingError, match="holds a run already"):
        train_stage(Line(), LOOP, tmp_path, resume="never")


@pytest.mark.parametrize("name", ["checkpoint-00000005.pt", ""])
def test_resume_from_a_path_goes_on_in_another_folder(tmp_path: Path, name: str) -> None:
    whole, resumed = Line(), Line()
    train_stage(whole, replace(LOOP, keep_last=3), tmp_path / "one")
    train_stage(resumed, LOOP, tmp_path / "two", resume=tmp_path / "one" / name)
    assert equal(whole, resumed)
    with pytest.raises(TrainingError, match="no checkpoint"):
        train_stage(Line(), LOOP, tmp_path / "two", resume=tmp_path / "nowhere")


def test_going_on_from_an_earlier_checkpoint_leaves_the_later_course(tmp_path: Path) -> None:
    train_stage(Line(), replace(LOOP, keep_last=5), tmp_path)
    run = TrainingRun(Line(), LOOP, tmp_path)
    run.resume(tmp_path / "checkpoint-00000004.pt")
    run.save()
    assert names(tmp_path) == ["checkpoint-00000004.pt", "checkpoint-00000003.pt"]


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    TrainingRun(Line(), LOOP, tmp_path).save()
    other = Line()
    other.layer = nn.Linear(1, 2)
    with pytest.raises(TrainingError, match="another configuration"):
        train_stage(other, LOOP, tmp_path)


def test_settings_that_may_change_are_told(tmp_path: Path) -> None:
    train_stage(Line(), LOOP, tmp_path)
    notes: list[str] = []
    train_stage(Line(), replace(LOOP, steps=9, track=()), tmp_path, on_note=notes.append)
    assert notes == ["going on from step 7 with other settings; what changed: loop.steps 7 -> 9"]


def test_a_rate_of_muon_may_change_but_muon_may_not_come_or_go(tmp_path: Path) -> None:
    train_stage(Line(), replace(LOOP, matrix_learning_rate=2e-3), tmp_path)
    notes: list[str] = []
    slower = replace(LOOP, matrix_learning_rate=1e-3, steps=8)
    train_stage(Line(), slower, tmp_path, on_note=notes.append)
    assert "loop.matrix_learning_rate 0.002 -> 0.001" in notes[0]
    with pytest.raises(TrainingError, match=r"matrix_learning_rate 0\.001 -> 0"):
        train_stage(Line(), replace(slower, matrix_learning_rate=0.0, steps=9), tmp_path)


def test_settings_that_may_not_change_are_named(tmp_path: Path) -> None:
    class Colour(Config):
        def to_dict(self) -> dict[str, Any]:
            return {"width": 3, "sides": (1, 2)}

    class Other(Config):
        def to_dict(self) -> dict[str, Any]:
            return {"width": 4, "sides": [1, 2]}

    stage, other = Line(), Line()
    stage.config, other.config = Colour(), Other()  # type: ignore[attr-defined]
    train_stage(stage, LOOP, tmp_path)
    with pytest.raises(TrainingError, match=r"what changed: loop.weight_decay 0.05 -> 0.1, stage.width 3 -> 4$"):
        train_stage(other, replace(LOOP, weight_decay=0.1, steps=9), tmp_path)


def test_checkpoints_of_the_first_version_are_still_read(tmp_path: Path) -> None:
    whole, resumed = Line(), Line()
    train_stage(whole, replace(LOOP, keep_last=5), tmp_path / "new")
    state = torch.load(tmp_path / "new" / "checkpoint-00000004.pt", weights_only=True)
    old = {key: state[key] for key in ("stage", "optimizers", "average", "step", "seconds", "skipped")}
    (tmp_path / "old").mkdir()
    torch.save({**old, "rng": state["rng"][0]["torch"]}, tmp_path / "old" / OLD_NAME)
    assert not is_finished(tmp_path / "old", LOOP)
    train_stage(resumed, LOOP, tmp_path / "old")
    assert equal(whole, resumed)


@pytest.mark.parametrize("resume", ["auto", "checkpoint-00000007.pt"])
def test_a_checkpoint_of_a_newer_version_is_neither_read_nor_passed_over(tmp_path: Path, resume: str) -> None:
    train_stage(Line(), LOOP, tmp_path)
    path = tmp_path / "checkpoint-00000007.pt"
    state = torch.load(path, weights_only=True)
    assert state["format"] == FORMAT
    torch.save({**state, "format": FORMAT + 1}, path)
    with pytest.raises(TrainingError, match=f"00000007.pt is of format {FORMAT + 1}, this version of star reads up to"):
        train_stage(Line(), replace(LOOP, steps=9), tmp_path, resume="auto" if resume == "auto" else path)
