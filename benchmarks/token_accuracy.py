"""Does a model know its scenes by heart, or can it compose? Accuracy of its tokens, true maps before them.

    python -m benchmarks.token_accuracy --model star-icons --mix grounds --objects 100 --scenes 48

Percent of tokens that the model thinks likeliest, by side of the map, on three kinds of scenes. `first`: those that a
token cache of the mix holds. `new`: others that training may draw and most likely did not. `held out`: with a pair of
thing and ground, or of two things, that training never shows.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator

import torch

from star_cli.checkpoints.known import find_model
from star_cli.data.icons.scenes import HELD_OUT_SEED, MIXES
from star_cli.data.icons.source import IconScenes
from star_cli.memory import keep_pages
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.training.batch_reader import BatchReader
from star_cli.training.star_batches import StarBatch
from star_cli.training.star_loss import scale_loss
from star_cli.training.trackers import Means

FIRST_SEEDS = {"first": 0, "new": 600_000_000, "held out": HELD_OUT_SEED + 5_000_000}
_BATCH = 8


def batches(scenes: IconScenes, resolution: int, scales: int) -> Iterator[StarBatch]:
    """All scenes with the caption that goes with each."""
    for first in range(0, len(scenes), _BATCH):
        rows = range(first, min(first + _BATCH, len(scenes)))
        pixels = torch.stack([scenes.pixels(row, resolution, "centre", random.Random(0)) for row in rows])
        yield StarBatch(resolution, scales, None, [scenes.captions(row)[0] for row in rows], pixels=pixels)


@torch.inference_mode()
def accuracy(
    transformer: StarTransformer, reader: BatchReader, scenes: IconScenes, resolution: int, schedule: ScaleSchedule
) -> dict[int, float]:
    """Percent of right tokens, by side of the map."""
    means = Means()
    for batch in batches(scenes, resolution, len(schedule)):
        tokens, condition = reader.read(batch)
        maps = [tokens[:, schedule.slice(scale)] for scale in range(len(schedule))]
        known = reader.vqvae.quantizer.teacher_input(maps, schedule)
        _, figures = scale_loss(transformer(transformer.prompt(condition), known, schedule), tokens, schedule)
        means.add(figures)
    found = means.take()
    return {side: 100 * float(found[f"side {side}"]) for side in schedule.sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="star-icons", help="name or folder")
    parser.add_argument("--mix", default="grounds", choices=MIXES)
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--scenes", type=int, default=48, help="of each kind; a multiple of 8 weighs all alike")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_pages()
    folder = find_model(options.model)
    vqvae, text_encoder = folder.load_vqvae(dtype=torch.float32).eval(), folder.load_text_encoder()
    transformer = folder.load_transformer(dtype=torch.float32).eval()
    reader = BatchReader(vqvae, text_encoder, folder.schedules)
    for resolution, schedule in folder.schedules.items():
        print(f"\n| {resolution} px | {' | '.join(map(str, schedule.sides))} |\n|{'---|' * (len(schedule) + 1)}")
        for kind, seed in FIRST_SEEDS.items():
            scenes = IconScenes.open(options.scenes, seed, options.mix, options.objects)
            scenes.prepare(resolution)
            found = accuracy(transformer, reader, scenes, resolution, schedule)
            print(f"| {kind} | {' | '.join(f'{value:.1f}' for value in found.values())} |", flush=True)


if __name__ == "__main__":
    main()
