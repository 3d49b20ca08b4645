"""Where figures go: one line per log step, no step twice after a resume, and clear words when a library is missing."""

from __future__ import annotations

import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star_cli.errors import OptionError
from star_cli.training.loop import Progress, TrainingRun, train_stage
from star_cli.training.trackers import METRICS, JsonLines, Means
from tests.training.tiny_stages import LOOP, Infinite, Line, Painter


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]


def test_every_log_step_has_its_line_with_means_since_the_last(tmp_path: Path) -> None:
    steps: list[Progress] = []
    train_stage(Painter(), replace(LOOP, log_every=3), tmp_path, steps.append)
    told = lines(tmp_path)
    assert [line["step"] for line in told] == [3, 6, 7]
    losses = [step.metrics["loss"] for step in steps]
    assert told[1]["loss"] == pytest.approx(sum(losses[3:6]) / 3)
    assert {"rate", "norm", "right", "images_per_s", "tokens_per_s", "seconds", "overhead"} <= set(told[0])
    assert told[2]["tokens_per_s"] == pytest.approx(told[2]["images_per_s"] * 21)


def test_a_resumed_run_has_each_line_once(tmp_path: Path) -> None:
    loop = replace(LOOP, log_every=1, keep_last=9)
    train_stage(Line(), loop, tmp_path)
    whole = lines(tmp_path)
    with (tmp_path / METRICS).open("a", encoding="utf-8") as file:
        file.write('{"step": 8, "lo')  # cut off by a crash
    run = TrainingRun(Line(), loop, tmp_path)
    run.resume(tmp_path / "checkpoint-00000003.pt")
    run.train()
    again = lines(tmp_path)
    assert [line["step"] for line in again] == list(range(1, 8))
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]


def test_what_is_not_finite_is_null_in_json(tmp_path: Path) -> None:
    train_stage(Infinite(), replace(LOOP, log_every=1), tmp_path)
    assert lines(tmp_path)[3]["loss"] is None
    assert lines(tmp_path)[4]["loss"] is not None


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_stage(Line(), replace(LOOP, log_every=1, track=("tensorboard",)), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == list(range(1, 8))
    assert [point.value for point in events.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in lines(tmp_path)]
    )


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_tracker_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    real = builtins.__import__

    def without(wanted: str, *arguments: Any, **named: Any) -> Any:
        if wanted == module:
            raise ImportError(wanted)
        return real(wanted, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=f"{name} is not installed") as caught:
        train_stage(Line(), replace(LOOP, track=(name,)), tmp_path)
    extra = {"tensorboard": "train", "wandb": "wandb"}[name]
    assert f"star-cli[{extra}]" in (caught.value.hint or "")


def test_means_are_over_the_steps_that_have_the_figure() -> None:
    means = Means()
    means.add({"loss": 1.0, "usage": 4.0})
    means.add({"loss": 3.0})
    assert means.take() == {"loss": 2.0, "usage": 4.0}
    assert means.take() == {}


def test_a_new_run_begins_with_an_empty_file(tmp_path: Path) -> None:
    JsonLines(tmp_path, 0).log(5, {"loss": 1.0})
    JsonLines(tmp_path, 0).log(1, {"loss": 2.0})
    assert [line["step"] for line in lines(tmp_path)] == [1]
