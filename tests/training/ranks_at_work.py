"""What a process of the test with two of them does: `python -m tests.training.ranks_at_work RANK WORLD FOLDER`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from star_cli.models.config import VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.config import LoopConfig
from star_cli.training.loop import Progress, train_stage
from star_cli.training.ranks import gather_rows, world
from star_cli.training.vqvae import VQVAEStage
from star_cli.training.vqvae_config import VQVAEStageConfig

MODEL = VQVAEConfig(codebook_size=32, code_dim=8, channels=8, multipliers=(1, 2), blocks=1, patch=4, groups=1)
CONFIG = VQVAEStageConfig(
    batch_size=8,
    plain_share=0.2,
    plain_crop=16,
    plain_batch_size=6,
    crop=16,
    crop_batch_size=4,
    revive_below=0.3,
    quiet_share=0.2,
    adversarial_weight=0.5,
    adversarial_start=0.4,
    discriminator_width=8,
    discriminator_layers=2,
)
SCHEDULES = {32: ScaleSchedule((1, 2, 4)), 64: ScaleSchedule((1, 2, 4, 8), 3)}
STEPS = 10


def train(rank: int) -> dict[str, Any]:
    """A few steps on this process's rows, gradients averaged: weights, codebook, counts, losses."""
    torch.manual_seed(0)
    stage = VQVAEStage(MODEL, replace(CONFIG), SCHEDULES, STEPS, 0).train()
    optimizer = torch.optim.SGD(stage.parameters(), lr=1e-2)
    torch.manual_seed(rank)  # what is drawn at random must be drawn once
    losses = []
    for step in range(STEPS):
        batch = stage.source.batch(step)
        loss, _ = stage.loss(replace(batch, images=batch.images[rank :: world()]), step)
        stage.zero_grad()
        loss.backward()
        value = loss.detach().clone()
        if world() > 1:
            for each in [value, *(p.grad for p in stage.parameters() if p.grad is not None)]:
                dist.all_reduce(each)
                each /= world()
        optimizer.step()
        stage.after_step(step)
        losses.append(value)
    return {"losses": torch.stack(losses), "state": stage.state_dict()}


def train_by_the_loop(folder: Path) -> list[dict[str, float]]:
    """Metrics of each step of a whole run, in the first process."""
    torch.manual_seed(0)
    loop = LoopConfig(
        steps=STEPS,
        learning_rate=1e-3,
        warmup_steps=2,
        ema_decay=0.5,
        precision="float32",
        device="cpu",
        workers=0,
        evaluate_every=5,
        preview_every=5,
    )
    stage = VQVAEStage(MODEL, replace(CONFIG, evaluate_count=2), SCHEDULES, STEPS, 0)
    steps: list[Progress] = []
    train_stage(stage, loop, folder, steps.append)
    return [step.metrics for step in steps]


def main(rank: int, processes: int, folder: Path) -> None:
    """Train and write what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=processes)
    rows = torch.arange(15.0).view(5, 3)
    result = train(rank) | {"rows": gather_rows(rows[rank::processes]), "steps": train_by_the_loop(folder / "run")}
    torch.save(result, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
