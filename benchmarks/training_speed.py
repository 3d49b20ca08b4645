"""How fast does stage 2 train? Images and tokens a second, MFU, memory, and the loop's own share of the time.

    python -m benchmarks.training_speed --depth 16 --batch-size 64 --precision bfloat16 --device cuda

Made-up tokens and text features, as a token cache would give them, or with --pixels made-up pictures, through stage 2
as it is: the published tokenizer (random weights), the transformer, the shared loop with optimiser and moving average.
Width is 64 times the depth, as published. Under `torchrun --nproc-per-node N -m
benchmarks.training_speed ...` it trains on N processes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from star_cli.memory import keep_pages
from star_cli.models.condition import TextCondition
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.config import LoopConfig
from star_cli.training.loop import Progress, TrainingRun
from star_cli.training.star import StarStage, StarStageConfig
from star_cli.training.star_batches import Portion, StarBatch, StarSource

SCHEDULES = {
    256: ScaleSchedule((1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    512: ScaleSchedule((1, 2, 3, 4, 6, 9, 13, 18, 24, 32)),
}
TEXT_TOKENS = 77


class MadeUp(StarSource):
    """Random tokens, or random pixels for the tokenizer to read, with random text features."""

    def __init__(self, portion: Portion, schedule: ScaleSchedule, model: TransformerConfig, is_pixels: bool):
        self.portions, self.schedule, self.model, self.is_pixels = (portion,), schedule, model, is_pixels
        self.seed = 0

    def batch(self, step: int) -> StarBatch:
        draw = torch.Generator().manual_seed(step)
        (portion,) = self.portions
        rows, resolution, scales = portion.batch_size, portion.resolution, len(self.schedule)
        states = torch.randn(rows, TEXT_TOKENS, self.model.text_width, generator=draw)
        features = TextCondition(states.mean(1), states, torch.ones(rows, TEXT_TOKENS, dtype=torch.bool))
        if self.is_pixels:
            pixels = torch.rand(rows, 3, resolution, resolution, generator=draw) * 2 - 1
            return StarBatch(resolution, scales, None, [""] * rows, pixels=pixels, features=features)
        tokens = torch.randint(self.model.codebook_size, (rows, self.schedule.length), generator=draw)
        return StarBatch(resolution, scales, tokens, [""] * rows, features=features)


def make_stage(model: TransformerConfig, resolution: int, rows: int, is_pixels: bool) -> StarStage:
    """Stage 2 with the published tokenizer's architecture; no text encoder, for the features are there."""
    schedule = SCHEDULES[resolution]
    source = MadeUp(Portion(resolution=resolution, batch_size=rows, share=1.0), schedule, model, is_pixels)
    vqvae = MultiScaleVQVAE(VQVAEConfig()).eval().requires_grad_(False)
    encoder: Any = SimpleNamespace(max_tokens=TEXT_TOKENS)
    config = StarStageConfig(scenes=1, scale_weight="token")
    return StarStage(model, config, {resolution: schedule}, vqvae, encoder, source)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--res", type=int, default=256, choices=sorted(SCHEDULES))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parallel", default="ddp")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--pixels", action="store_true", help="tokenize in each step, as without a token cache")
    parser.add_argument("--ema-decay", type=float, default=0.999)
    options = parser.parse_args(arguments)
    keep_pages()
    schedule = SCHEDULES[options.res]
    model = TransformerConfig(
        depth=options.depth, width=64 * options.depth, heads=options.depth, levels=len(schedule), text_width=1024
    )
    loop = LoopConfig(
        steps=options.steps,
        learning_rate=1e-4,
        precision=options.precision,
        device=options.device,
        parallel=options.parallel,
        accumulate=options.accumulate,
        compile=options.compile,
        checkpointing=options.checkpointing,
        ema_decay=options.ema_decay,
    )
    last: list[Progress] = []
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(make_stage(model, options.res, options.batch_size, options.pixels), loop, Path(folder))
        run.save = lambda: None  # type: ignore[method-assign]  # only steps are of interest
        run.train(lambda progress: last.__setitem__(slice(None), [progress]))
        device = run.processes.device
    if last:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
        told = {
            **vars(options),
            "device": f"{device} {name}",
            "torch": torch.__version__,
            "loss": last[0].metrics["loss"],
        }
        print(json.dumps(told | asdict(last[0].figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
