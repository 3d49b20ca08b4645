"""The shared loop: rates, exact resume, checkpoints that are whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from star_cli.errors import OptionError, TrainingError
from star_cli.training.config import LoopConfig
from star_cli.training.loop import CHECKPOINT, BatchSource, Progress, Stage, TrainingRun, learning_rate_at, train_stage

LOOP = LoopConfig(steps=7, learning_rate=1e-2, warmup_steps=2, ema_decay=0.9, precision="float32", save_every=1)


class Numbers(BatchSource):
    """Points on a line; the batch follows from the step."""

    def batch(self, step: int) -> Any:
        points = torch.rand(16, 1, generator=torch.Generator().manual_seed(step))
        return points, 3 * points - 1


class Line(Stage):
    """Learns the line; draws noise from the global generator, as dropout would."""

    name = "line"

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source = Numbers()
        self.layer = nn.Linear(1, 1)
        self.fails_at = fails_at

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [self.layer.weight]

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == self.fails_at:
            raise RuntimeError("power cut")
        points, wanted = batch
        noisy = points + 0.01 * torch.randn_like(points)
        return (self.layer(noisy) - wanted).square().mean(), {}


class Infinite(Line):
    """Its loss is infinite at one step."""

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, metrics = super().loss(batch, step)
        return (loss * torch.inf if step == 3 else loss), metrics


def weights(stage: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in stage.parameters()]


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate_at(step, LOOP) for step in range(7)]
    assert rates[0] == pytest.approx(5e-3)
    assert max(rates) == rates[2] == pytest.approx(1e-2)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate_at(6, replace(LOOP, decay="none")) == 1e-2
    assert learning_rate_at(7, replace(LOOP, decay="linear", final_rate=0.25)) == pytest.approx(2.5e-3)


@pytest.mark.parametrize("matrix_rate", [0.0, 0.02])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, cut: int, matrix_rate: float) -> None:
    loop = replace(LOOP, matrix_learning_rate=matrix_rate)
    whole = Line()
    train_stage(whole, loop, tmp_path / "whole")
    broken = Line(fails_at=cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train_stage(broken, loop, tmp_path / "cut")
    resumed = Line()
    train_stage(resumed, loop, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_muon_takes_the_hidden_matrices_at_their_own_rate(tmp_path: Path) -> None:
    stage = Line()
    run = TrainingRun(stage, replace(LOOP, matrix_learning_rate=0.02), tmp_path)
    muon, adamw = run.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert [group["params"] for group in muon.param_groups] == [[stage.layer.weight]]
    assert [group["params"] for group in adamw.param_groups] == [[], [stage.layer.bias]]
    run._set_rates(0.5)
    assert [muon.param_groups[0]["lr"], adamw.param_groups[1]["lr"]] == [0.01, 5e-3]
    assert len(TrainingRun(Line(), LOOP, tmp_path).optimizers) == 1


def test_finished_stage_is_taken_from_its_checkpoint(tmp_path: Path) -> None:
    first, again = Line(), Line(fails_at=0)
    train_stage(first, LOOP, tmp_path)
    steps: list[Progress] = []
    train_stage(again, LOOP, tmp_path, steps.append)
    assert not steps
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))


def test_stage_ends_with_averaged_weights_and_without_gradients(tmp_path: Path) -> None:
    stage = Line()
    run = TrainingRun(stage, LOOP, tmp_path)
    run.train()
    assert all(torch.equal(value, run.average[key]) for key, value in stage.named_parameters())
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    assert not stage.training


def test_infinite_gradients_skip_the_step_and_are_counted(tmp_path: Path) -> None:
    steps: list[Progress] = []
    train_stage(Infinite(), LOOP, tmp_path, steps.append)
    assert [step.metrics["skipped"] for step in steps] == [0, 0, 0, 1, 1, 1, 1]
    assert all(step.metrics["loss"] < 10 for step in steps if step.step != 4)


def test_failed_save_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun(Line(), LOOP, tmp_path)
    run.save()
    before = (tmp_path / CHECKPOINT).read_bytes()

    def full(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left"):
        run.save()
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    TrainingRun(Line(), LOOP, tmp_path).save()
    other = Line()
    other.layer = nn.Linear(1, 2)
    with pytest.raises(TrainingError, match="another configuration"):
        train_stage(other, LOOP, tmp_path)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="learning_rate"):
        replace(LOOP, learning_rate=0.0)
    with pytest.raises(OptionError, match="no field"):
        LoopConfig.from_dict({"steps": 1, "learning_rate": 1.0, "stepps": 2})
