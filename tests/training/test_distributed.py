"""Two processes do what one does: same losses, same weights, checkpoints that each can go on from."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from star_cli.errors import OptionError
from star_cli.training.distributed import join
from tests.training.tiny_stages import Line, Painter
from tests.training.two_processes import FSDP, LOOP, curve, flat

ROOT = Path(__file__).parents[2]
CLOSE = 1e-4


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes left what they did, and beside it the same by one process."""
    folder = tmp_path_factory.mktemp("two")
    curve(Painter(), LOOP, folder / "one")
    together = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    together |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.two_processes", str(folder)]
    both = [
        subprocess.Popen(command, cwd=ROOT, env={**together, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.wait()
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Any]:
    """What they said."""
    return json.loads((folder / "told.json").read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("how", ["", " uneven", " in parts"])
def test_two_processes_give_the_curve_of_one(tmp_path: Path, told: dict[str, Any], kind: str, how: str) -> None:
    stage = Painter(5 if how == " uneven" else 6)
    losses = curve(stage, LOOP, tmp_path)
    assert len(losses) == 6
    assert told[kind + how]["losses"] == pytest.approx(losses, abs=CLOSE)
    assert told[kind + how]["weights"] == pytest.approx(flat(stage), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp from fsdp", "ddp from one", "fsdp from ddp", "fsdp from fsdp"])
def test_two_processes_go_on_from_any_checkpoint(tmp_path: Path, told: dict[str, Any], name: str) -> None:
    stage = Painter()
    losses = curve(stage, LOOP, tmp_path)
    assert told[name]["losses"] == pytest.approx(losses[3:], abs=CLOSE)
    assert told[name]["weights"] == pytest.approx(flat(stage), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp/checkpoint-00000003.pt", "fsdp/checkpoint-00000003"])
def test_one_process_goes_on_from_the_checkpoint_of_two(tmp_path: Path, folder: Path, name: str) -> None:
    stage, resumed = Painter(), Painter()
    losses = curve(stage, LOOP, tmp_path / "whole")
    assert curve(resumed, LOOP, tmp_path / "resumed", folder / name) == pytest.approx(losses[3:], abs=CLOSE)
    assert flat(resumed) == pytest.approx(flat(stage), abs=1e-3)


@pytest.mark.slow
def test_a_loss_that_rows_cannot_share_is_computed_whole(tmp_path: Path, told: dict[str, Any]) -> None:
    stage = Line()
    losses = curve(stage, LOOP, tmp_path)
    assert told["not shared"] == {"losses": losses, "weights": flat(stage)}


@pytest.mark.slow
def test_one_asked_to_stop_stops_both_after_the_same_step(told: dict[str, Any]) -> None:
    assert told["stopped"] == ["checkpoint-00000004.pt"]


@pytest.mark.slow
def test_previews_of_shares_are_drawn_by_one_and_disturb_nothing(folder: Path, told: dict[str, Any]) -> None:
    assert sorted(path.name for path in (folder / "fsdp with previews").glob("preview-*")) == [
        f"preview-00000{step}.png" for step in (2, 4, 6)
    ]
    assert told["fsdp with previews"] == told["fsdp"]


@pytest.mark.slow
def test_helpers_between_processes(told: dict[str, Any]) -> None:
    assert told["sum"] == [3.0]
    assert told["order"] == ["0", "1"]
    assert "Muon needs whole matrices" in told["muon"]


# -- what accelerate was told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCELERATE_USE_FSDP", "true", "accelerate was told to use FSDP"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "accelerate was told bfloat16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "accelerate was told 4"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
    ],
)
def test_accelerate_and_the_configuration_must_agree(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    join(LOOP)
    monkeypatch.setenv(variable, value)
    with pytest.raises(OptionError, match=said):
        join(LOOP)


def test_accelerate_may_say_what_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert join(replace(FSDP, precision="bfloat16", accumulate=4)).world == 1
