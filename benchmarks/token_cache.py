"""What a token cache saves, what float16 features cost, and whether remembering captions pays.

    python benchmarks/token_cache.py --model star-shapes --res 256 --pictures 64

Pictures are the built-in scenes, each with the caption of its seed. One JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from star_cli.checkpoints.folder import ModelFolder
from star_cli.checkpoints.known import find_model
from star_cli.data import shapes
from star_cli.data.cache import TokenCache
from star_cli.data.cache_build import build_cache
from star_cli.data.cache_plan import CacheOptions
from star_cli.data.encoding import tokenize
from star_cli.data.source import CaptionedImages, ShapeScenes
from star_cli.models.text import TextEncoder
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.batch_reader import BatchReader
from star_cli.training.star import StarStage, StarStageConfig
from star_cli.training.star_batches import Portion, StarBatch, StarSource
from star_cli.training.star_sources import CachedBatches, PixelBatches


class Scenes(ShapeScenes):
    """Scenes that keep their captions, as collected pictures do."""

    caption = CaptionedImages.caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="star-shapes")
    parser.add_argument("--res", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    folder = find_model(arguments.model)
    vqvae, text_encoder = folder.load_vqvae(arguments.device), folder.load_text_encoder(arguments.device)
    source = Scenes(arguments.pictures)
    told: dict[str, Any] = {
        **vars(arguments),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    told["tokens that another batch size changes"] = drift_of_batch_size(source, vqvae, folder, arguments.res)
    with tempfile.TemporaryDirectory() as place:
        caches = make_caches(source, Path(place), vqvae, text_encoder, folder, arguments.res, told)
        compare_losses(source, caches, folder, vqvae, text_encoder, arguments, told)
    told["captions a second"] = captions_a_second(text_encoder, arguments.batch_size)
    print(json.dumps(told, indent=2))


def drift_of_batch_size(
    source: CaptionedImages, vqvae: MultiScaleVQVAE, folder: ModelFolder, resolution: int
) -> dict[str, str]:
    """Tokens of pictures encoded alone against those encoded in batches: only a tie can fall the other way."""
    rng, schedule = random.Random(0), folder.schedules[resolution]
    pixels = torch.stack([source.pixels(index, resolution, "centre", rng) for index in range(len(source))])
    alone = torch.cat([tokenize(vqvae, one[None], schedule) for one in pixels])
    found = {}
    for size in (4, 16, 64):
        together = torch.cat([tokenize(vqvae, some, schedule) for some in pixels.split(size)])
        found[str(size)] = f"{int((together != alone).sum())} of {alone.numel()}"
    return found


def make_caches(
    source: CaptionedImages,
    place: Path,
    vqvae: MultiScaleVQVAE,
    text_encoder: TextEncoder,
    folder: ModelFolder,
    resolution: int,
    told: dict[str, Any],
) -> dict[str, TokenCache]:
    """One with each kind of features; what it took, and bytes for a picture."""
    schedules, caches = {resolution: folder.schedules[resolution]}, {}
    for kind in ("none", "float16", "float32"):
        began = clock()
        options = CacheOptions(features=kind)  # type: ignore[arg-type]  # one of its choices
        caches[kind] = build_cache(source, place / kind, vqvae, text_encoder, schedules, options)
        seconds = clock() - began
        size = sum(path.stat().st_size for path in (place / kind).glob("*.safetensors"))
        told[f"cache with features {kind}"] = {
            "pictures a second": round(len(source) / seconds, 1),
            "bytes a picture": round(size / len(source)),
        }
    return caches


def compare_losses(
    source: CaptionedImages,
    caches: dict[str, TokenCache],
    folder: ModelFolder,
    vqvae: MultiScaleVQVAE,
    text_encoder: TextEncoder,
    arguments: argparse.Namespace,
    told: dict[str, Any],
) -> None:
    """Loss of the trained transformer, batch by batch, and the time until the transformer may begin."""
    schedules = dict(folder.schedules)
    portions = [Portion(resolution=arguments.res, batch_size=arguments.batch_size, share=1.0)]
    pixels = PixelBatches(source, schedules, portions, 0.1, 0)
    sources: dict[str, StarSource] = {
        "pixels": pixels,
        **{
            f"cache, features {kind}": CachedBatches(cache, schedules, portions, 0.1, 0)
            for kind, cache in caches.items()
        },
    }
    stage = StarStage(folder.transformer, StarStageConfig(scenes=1), schedules, vqvae, text_encoder, pixels)
    stage.transformer.load_state_dict(folder.load_transformer(arguments.device).state_dict())
    stage.to(arguments.device)
    losses = {name: [loss_of(stage, one, step) for step in range(arguments.steps)] for name, one in sources.items()}
    for name, one in sources.items():
        difference = [abs(a - b) for a, b in zip(losses[name], losses["pixels"], strict=True)]
        told[name] = {
            "loss": sum(losses[name]) / len(difference),
            "largest difference from pixels": max(difference),
            "seconds to make a batch": seconds_of(lambda step, one=one: one.batch(step), arguments.steps),
            "seconds to read a batch": seconds_of(
                lambda step, one=one: stage.reader.read(one.batch(step).to(arguments.device)), arguments.steps
            ),
        }


@torch.no_grad()
def loss_of(stage: StarStage, source: StarSource, step: int) -> float:
    device = next(stage.parameters()).device
    return stage.loss(source.batch(step).to(device), step)[0].item()


def seconds_of(work: Callable[[int], Any], steps: int) -> float:
    work(0)
    began = clock()
    for step in range(steps):
        work(step)
    return round((clock() - began) / steps, 5)


def clock() -> float:
    """Seconds; without a GPU those of this process alone, all threads together: others may be using the machine."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def captions_a_second(text_encoder: TextEncoder, batch_size: int) -> dict[str, int]:
    """New captions in batches and one by one, and captions that are remembered."""
    captions = [shapes.sample(seed)[1] for seed in range(40 * batch_size)]
    batches = [captions[start : start + batch_size] for start in range(0, len(captions), batch_size)]
    plain = BatchReader(None, text_encoder, {})  # type: ignore[arg-type]  # no pixels are read
    keeping = BatchReader(None, text_encoder, {}, remembered=len(captions))  # type: ignore[arg-type]

    def rate(reader: BatchReader) -> int:
        seconds = seconds_of(lambda step: reader.condition(StarBatch(0, 0, None, batches[step + 1])), len(batches) - 1)
        return round(batch_size / seconds)

    return {"in batches": rate(plain), "one by one": rate(keeping), "remembered": rate(keeping)}


if __name__ == "__main__":
    main()
