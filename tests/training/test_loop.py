"""The shared loop: rates, exact resume, parts of a batch, what is not finite, what a stage is left as."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from star_cli.errors import OptionError, TrainingError
from star_cli.training.config import LoopConfig
from star_cli.training.loop import Progress, TrainingRun, train_stage
from star_cli.training.optimizers import learning_rate_at, set_rates
from tests.training.tiny_stages import LOOP, Infinite, Line, Painter, Pictures, equal


def fails_at(step: int) -> Any:
    def check(now: int) -> None:
        if now == step:
            raise RuntimeError("power cut")

    return check


def losses(stage: Line | Painter, loop: LoopConfig, folder: Path) -> list[float]:
    steps: list[Progress] = []
    train_stage(stage, loop, folder, steps.append)
    return [step.metrics["loss"] for step in steps]


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate_at(step, LOOP) for step in range(7)]
    assert rates[0] == pytest.approx(5e-3)
    assert max(rates) == rates[2] == pytest.approx(1e-2)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert learning_rate_at(6, replace(LOOP, decay="none")) == 1e-2
    assert learning_rate_at(7, replace(LOOP, decay="linear", final_rate=0.25)) == pytest.approx(2.5e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_process_computes_what_the_plainest_loop_does(tmp_path: Path, precision: str) -> None:
    """Bit for bit, so that a recipe goes on giving the weights that it gave."""
    loop = replace(LOOP, precision=precision, clip_norm=0.5, matrix_learning_rate=0.0)
    ours = Painter()
    ours_losses = losses(ours, loop, tmp_path)

    plain = Painter()
    gains = [p for p in plain.parameters() if p.ndim <= 1]
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}], lr=1e-2, betas=(0.9, 0.95)
    )
    average = [p.detach().clone() for p in plain.parameters()]
    plain_losses = []
    for step in range(7):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, loop) / 1e-2 * 1e-2
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss, _ = plain.loss(Pictures().batch(step), step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(average, plain.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.9, (1 + step) / (10 + step)))
        plain_losses.append(loss.item())
    assert ours_losses == plain_losses
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), average, strict=True))


@pytest.mark.parametrize("matrix_rate", [0.0, 0.02])
@pytest.mark.parametrize("cut", [1, 3, 6])
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, cut: int, matrix_rate: float) -> None:
    loop = replace(LOOP, matrix_learning_rate=matrix_rate)
    whole = Line()  # a Line seeds the generator that its noise comes from
    train_stage(whole, loop, tmp_path / "whole")
    broken = Line(fails_at(cut))
    with pytest.raises(RuntimeError, match="power cut"):
        train_stage(broken, loop, tmp_path / "cut")
    resumed = Line()
    train_stage(resumed, loop, tmp_path / "cut")
    assert equal(whole, resumed)


@pytest.mark.parametrize(("rows", "parts"), [(6, 2), (5, 3)])
def test_parts_of_a_batch_add_up_to_its_gradient(tmp_path: Path, rows: int, parts: int) -> None:
    whole = losses(Painter(rows), LOOP, tmp_path / "whole")
    in_parts = losses(Painter(rows), replace(LOOP, accumulate=parts), tmp_path / "parts")
    assert in_parts == pytest.approx(whole, abs=1e-4)


def test_a_batch_of_fewer_rows_than_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="batch of 2 cannot be shared by 3"):
        train_stage(Painter(2), replace(LOOP, accumulate=3), tmp_path)


def test_a_loss_of_whole_batches_takes_no_parts(tmp_path: Path) -> None:
    stage = Line()
    stage.shards = False
    with pytest.raises(OptionError, match="needs its batches whole"):
        TrainingRun(stage, replace(LOOP, accumulate=2), tmp_path)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_workers(tmp_path: Path, workers: int) -> None:
    assert losses(Line(), replace(LOOP, workers=workers), tmp_path / "some") == losses(Line(), LOOP, tmp_path / "one")


def test_float16_scales_the_loss_and_learns(tmp_path: Path) -> None:
    loop = replace(LOOP, precision="float16", steps=12)
    stage = Painter()
    run = TrainingRun(stage, loop, tmp_path)
    steps: list[Progress] = []
    run.train(steps.append)
    assert run.scaler.get_scale() > 1
    assert steps[-1].metrics["norm"] < 100  # of the loss itself, not of the scaled one
    assert losses(Painter(), replace(loop, precision="float32"), tmp_path / "exact") == pytest.approx(
        [step.metrics["loss"] for step in steps], abs=0.05
    )


def test_muon_takes_the_hidden_matrices_at_their_own_rate(tmp_path: Path) -> None:
    stage = Line()
    loop = replace(LOOP, matrix_learning_rate=0.02)
    muon, adamw = TrainingRun(stage, loop, tmp_path).optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert [group["params"] for group in muon.param_groups] == [[stage.layer.weight]]
    assert [group["params"] for group in adamw.param_groups] == [[], [stage.layer.bias]]
    set_rates([muon, adamw], 0.5)
    assert [muon.param_groups[0]["lr"], adamw.param_groups[1]["lr"]] == [0.01, 5e-3]
    assert len(TrainingRun(Line(), LOOP, tmp_path).optimizers) == 1


def test_finished_stage_is_taken_from_its_checkpoint(tmp_path: Path) -> None:
    first, again = Line(), Line(fails_at(0))
    train_stage(first, LOOP, tmp_path)
    steps: list[Progress] = []
    train_stage(again, LOOP, tmp_path, steps.append)
    assert not steps
    assert equal(first, again)


def test_stage_ends_with_averaged_weights_and_without_gradients(tmp_path: Path) -> None:
    stage = Line()
    run = TrainingRun(stage, LOOP, tmp_path)
    run.train()
    assert all(torch.equal(value, run.average.values[key]) for key, value in stage.named_parameters())
    assert not any(parameter.requires_grad for parameter in stage.parameters())
    assert not stage.training


# -- what is not finite -----------------------------------------------------------------------------------------------


def test_infinite_gradients_skip_the_step_and_are_counted(tmp_path: Path) -> None:
    steps: list[Progress] = []
    train_stage(Infinite(), LOOP, tmp_path, steps.append)
    assert [step.metrics["skipped"] for step in steps] == [0, 0, 0, 1, 1, 1, 1]
    assert all(step.metrics["loss"] < 10 for step in steps if step.step != 4)


def test_a_run_that_stays_infinite_ends_and_says_what_to_lower(tmp_path: Path) -> None:
    loop = replace(LOOP, max_skipped=3, precision="bfloat16")
    with pytest.raises(TrainingError, match="loss of 3 steps in a row, up to step 5") as caught:
        train_stage(Infinite(range(2, 9)), loop, tmp_path)
    assert "learning_rate (now 0.01)" in (caught.value.hint or "")
    assert 'precision = "float32"' in (caught.value.hint or "")
    steps: list[Progress] = []
    train_stage(Infinite(range(2, 9)), replace(loop, max_skipped=0), tmp_path / "never", steps.append)
    assert steps[-1].metrics["skipped"] == 5


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("learning_rate", 0.0), ("accumulate", 0), ("workers", -1), ("precision", "int8"), ("parallel", "tp")),
        *(("clip_norm", 0.0), ("clip_norm", -1.0), ("clip_norm", float("nan")), ("lora_alpha", 0.0)),
        *(("beta1", 1.5), ("beta2", 1.0), ("beta2", -0.1), ("weight_decay", -1.0), ("final_rate", -0.1)),
    ],
)
def test_bad_settings_are_refused(field: str, value: Any) -> None:
    with pytest.raises(OptionError, match=field):
        replace(LOOP, **{field: value})


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(OptionError, match="no field"):
        LoopConfig.from_dict({"steps": 1, "learning_rate": 1.0, "stepps": 2})
    with pytest.raises(OptionError, match="no tracker tensorbord"):
        replace(LOOP, track=("tensorbord",))


# -- memory and speed -------------------------------------------------------------------------------------------------


def test_activations_computed_again_give_the_same_gradients_and_a_resumable_run(tmp_path: Path) -> None:
    again = replace(LOOP, checkpointing=True)
    gradients = []
    for loop in (LOOP, again):
        run = TrainingRun(Painter(), loop, tmp_path / "gradients")
        run._gradients(Pictures().batch(0), 6)
        gradients.append([parameter.grad for parameter in run.stage.parameters()])
    assert all(torch.equal(kept, computed) for kept, computed in zip(*gradients, strict=True))
    whole, resumed = Painter(), Painter()
    assert losses(whole, again, tmp_path / "whole") == losses(Painter(), LOOP, tmp_path / "kept")
    with pytest.raises(RuntimeError, match="power cut"):
        train_stage(Painter(at_step=fails_at(4)), again, tmp_path / "cut")
    train_stage(resumed, again, tmp_path / "cut")
    assert equal(whole, resumed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler's own, from looking at gradients and complex numbers
def test_compiled_blocks_give_the_same_losses_and_a_resumable_run(tmp_path: Path) -> None:
    """The blocks of all runs are one piece of code, so it is compiled once."""
    compiled = replace(LOOP, compile=True)
    whole, resumed = Painter(), Painter()
    try:
        found = losses(whole, compiled, tmp_path / "whole")
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"no compiler works here: {error}")
    assert found == pytest.approx(losses(Painter(), LOOP, tmp_path / "plain"), abs=1e-5)
    with pytest.raises(RuntimeError, match="power cut"):
        train_stage(Painter(at_step=fails_at(4)), compiled, tmp_path / "cut")
    train_stage(resumed, compiled, tmp_path / "cut")
    assert equal(whole, resumed)
    both = losses(Painter(), replace(compiled, checkpointing=True), tmp_path / "both")
    assert both == pytest.approx(found, abs=1e-5)


# -- switches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["checkpointing", "compile"])
def test_a_switch_without_effect_is_refused(tmp_path: Path, switch: str) -> None:
    with pytest.raises(OptionError, match="stage line"):
        TrainingRun(Line(), replace(LOOP, **{switch: True}), tmp_path)
