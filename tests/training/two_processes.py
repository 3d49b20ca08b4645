"""What each of two processes does for `test_distributed.py`: `python -m tests.training.two_processes FOLDER`.

Everything here is done by both; what the first one knows is written to FOLDER/told.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from star_cli.errors import OptionError
from star_cli.training.checkpoint import list_checkpoints
from star_cli.training.config import LoopConfig
from star_cli.training.distributed import main_first
from star_cli.training.loop import Progress, TrainingRun, train_stage
from star_cli.training.ranks import sum_over_ranks
from star_cli.training.stage import Stage
from tests.training.tiny_stages import Line, Painter

# gradients are clipped in every step
LOOP = LoopConfig(
    steps=6,
    learning_rate=1e-2,
    warmup_steps=2,
    ema_decay=0.9,
    clip_norm=0.2,
    precision="float32",
    save_every=3,
    keep_last=9,
    device="cpu",
    workers=0,
)
FSDP = replace(LOOP, parallel="fsdp")


class StoppedForTestError(BaseException):
    pass


def curve(stage: Stage, loop: LoopConfig, folder: Path, resume: str | Path = "auto") -> list[float]:
    """Losses of the steps; in the first process alone."""
    steps: list[Progress] = []
    train_stage(stage, loop, folder, steps.append, resume=resume)
    return [step.metrics["loss"] for step in steps]


def flat(stage: Stage) -> list[float]:
    """All weights of a stage, which is whole again after training."""
    return torch.cat([parameter.detach().flatten() for parameter in stage.parameters()]).tolist()


def main(folder: Path) -> None:
    """Everything that is asked of two processes."""
    told: dict[str, Any] = {}
    for name, loop, rows in (
        ("ddp", LOOP, 6),
        ("fsdp", FSDP, 6),
        ("ddp uneven", LOOP, 5),
        ("fsdp uneven", FSDP, 5),
        ("ddp in parts", replace(LOOP, accumulate=2), 6),
        ("fsdp in parts", replace(FSDP, accumulate=2), 6),
        ("fsdp with previews", replace(FSDP, preview_every=2), 6),
    ):
        stage = Painter(rows)
        told[name] = {"losses": curve(stage, loop, folder / name), "weights": flat(stage)}
    for name, loop, other in (
        ("ddp from fsdp", LOOP, "fsdp/checkpoint-00000003"),
        ("ddp from one", LOOP, "one/checkpoint-00000003.pt"),
        ("fsdp from ddp", FSDP, "ddp/checkpoint-00000003.pt"),
        ("fsdp from fsdp", FSDP, "fsdp/checkpoint-00000003"),
    ):
        stage = Painter()
        told[name] = {"losses": curve(stage, loop, folder / name, folder / other), "weights": flat(stage)}
    whole = Line()
    whole.shards = False
    told["not shared"] = {"losses": curve(whole, LOOP, folder / "not shared"), "weights": flat(whole)}
    told["stopped"] = stopped(folder / "stopped")
    told["muon"] = refused(replace(FSDP, matrix_learning_rate=0.1), folder)
    told["sum"] = sum_over_ranks(torch.tensor([1.0 + dist.get_rank()])).tolist()
    told["order"] = order(folder / "order.txt")
    if dist.get_rank() == 0:
        (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


def stopped(folder: Path) -> list[str]:
    """The second process alone is asked to stop; both save after the same step."""

    def asked(step: int) -> None:
        if step == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        raise StoppedForTestError

    signal.signal(signal.SIGTERM, stop)
    try:
        train_stage(Painter(at_step=asked), replace(LOOP, save_every=100), folder)
    except StoppedForTestError:
        return [path.name for path in list_checkpoints(folder)]
    return ["it went on"]


def refused(loop: LoopConfig, folder: Path) -> str:
    try:
        TrainingRun(Painter(), loop, folder)
    except OptionError as error:
        return str(error)
    return "nothing"


def order(path: Path) -> list[str]:
    with main_first(), path.open("a", encoding="utf-8") as file:
        file.write(f"{dist.get_rank()}\n")
    dist.barrier()
    return path.read_text(encoding="utf-8").split()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
