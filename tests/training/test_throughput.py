"""Speed, memory and operations: what is told about a run, and what is said when memory runs out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from star_cli.errors import TrainingError
from star_cli.models.flops import training_flops
from star_cli.training.loop import Progress, train_stage
from star_cli.training.memory import activation_bytes, state_bytes
from star_cli.training.optimizers import make_optimizers
from star_cli.training.throughput import Meter, peak_flops
from tests.training.tiny_stages import LOOP, MODEL, SCHEDULE, Line, Painter, Pictures

CPU = torch.device("cpu")


def test_the_meter_tells_speed_and_the_share_that_is_no_work() -> None:
    meter = Meter(CPU, "float32")
    for _ in range(3):
        time.sleep(0.01)
        with meter.working():
            time.sleep(0.03)
        meter.step(images=4, tokens=40, flops=None)
    figures = meter.figures(steps_left=5)
    assert figures.images_per_s == pytest.approx(12 / meter.seconds)
    assert figures.tokens_per_s == pytest.approx(10 * figures.images_per_s)
    assert 0.05 < figures.overhead < 0.6
    assert figures.eta_s == pytest.approx(meter.seconds / 3 * 5)
    assert figures.memory_bytes > 10**7
    assert figures.mfu is None


def test_mfu_is_operations_over_what_the_device_could_do() -> None:
    meter = Meter(CPU, "float32")
    meter.step(images=1, tokens=1, flops=1e6)
    assert meter.figures(0).mfu == pytest.approx(1e6 / meter.seconds / peak_flops(CPU, "float32"))


def test_measuring_the_peak_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    peak_flops.cache_clear()
    assert peak_flops(CPU, "float32") > 1e8
    assert torch.equal(torch.get_rng_state(), before)


def test_operations_are_those_that_torch_counts(tmp_path: Path) -> None:
    stage, batch = Painter(), Pictures(6).batch(0)
    # plain attention: the counter of torch 2.14 passes over the fused one of a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        stage(batch, 0)[0].backward()
    # torch counts masked pairs of attention too, and leaves out gradients of inputs that need none
    assert training_flops(MODEL, SCHEDULE, 6, text_tokens=5).total == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_memory_of_the_state_is_counted() -> None:
    stage = Painter()
    parameters = sum(parameter.numel() for parameter in stage.parameters()) * 4
    sizes = state_bytes(stage, LOOP, make_optimizers(stage, LOOP))
    assert sizes == {
        "parameters": parameters,
        "gradients": parameters,
        "optimiser": 2 * parameters,
        "average": parameters,
    }


def test_activations_grow_with_the_rows() -> None:
    few, many = (activation_bytes(Painter(rows), Pictures(rows).batch(0), 0, LOOP) for rows in (2, 8))
    assert few is not None
    assert many is not None
    assert many == pytest.approx(4 * few, rel=0.1)
    assert few > 2 * MODEL.depth * SCHEDULE.length * MODEL.width * 4 * 4  # rows, blocks, tokens, width, a few each


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_it_needs_and_what_to_lower(tmp_path: Path, error: Exception) -> None:
    def runs_out(step: int) -> None:
        if step == 2 and not seen:
            seen.append(step)
            raise error

    seen: list[int] = []
    with pytest.raises(
        TrainingError, match=r"out of memory on cpu in step 3: it needs about .* MB \(parameters"
    ) as caught:
        train_stage(Painter(at_step=runs_out), LOOP, tmp_path)
    assert "activations of 6 rows" in str(caught.value)
    for setting in ("loop.checkpointing", "loop.accumulate (now 1)", "batch_size", 'loop.precision = "bfloat16"'):
        assert setting in (caught.value.hint or "")


def test_only_what_the_stage_can_do_is_advised(tmp_path: Path) -> None:
    def runs_out(step: int) -> None:
        raise MemoryError

    stage = Line(runs_out)
    stage.shards = False
    with pytest.raises(TrainingError, match="not even one row's fit") as caught:
        train_stage(stage, LOOP, tmp_path)
    assert caught.value.hint == 'lower batch_size; or set loop.precision = "bfloat16"; or set loop.ema_decay = 0'


def test_memory_that_really_runs_out_is_told_in_the_same_words(tmp_path: Path) -> None:
    def asks_for_too_much(step: int) -> Any:
        return torch.empty(2**50, dtype=torch.uint8)

    with pytest.raises(TrainingError, match="out of memory on cpu in step 1"):
        train_stage(Painter(at_step=asks_for_too_much), LOOP, tmp_path)


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    def fails(step: int) -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train_stage(Painter(at_step=fails), LOOP, tmp_path)


def test_progress_carries_the_figures(tmp_path: Path) -> None:
    steps: list[Progress] = []
    train_stage(Painter(), replace(LOOP, steps=4), tmp_path, steps.append)
    assert steps[-1].figures.images_per_s > 0
    assert steps[-1].figures.eta_s == 0
    assert 0 < steps[-1].figures.overhead < 1
