"""Pictures for looking at a run: drawn from prompts, laid out as contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from itertools import chain, islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from star_cli.data import shapes
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.images import write_whole
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.star_batches import StarSource, TokenSource


@torch.no_grad()
def draw_images(
    transformer: StarTransformer,
    vqvae: MultiScaleVQVAE,
    text_encoder: TextEncoder,
    prompts: Sequence[str],
    schedule: ScaleSchedule,
    options: SamplingOptions,
) -> Tensor:
    """Images of some prompts, (n, 3, H, W), -1..1, seed 0."""
    drawn = draw(
        transformer,
        vqvae.quantizer,
        text_encoder.encode(prompts),
        text_encoder.encode([""] * len(prompts)),
        schedule,
        options,
        random_generators([0] * len(prompts)),
    )
    return vqvae.decode(drawn.f_hat)


def usual_prompts(source: StarSource, count: int) -> list[str]:
    """Captions to draw where no prompts are given: of scenes that no stage learns from, or the source's first ones."""
    if isinstance(source, TokenSource):
        return [shapes.sample(shapes.HELD_OUT_SEED + index)[1] for index in range(count)]
    captions = chain.from_iterable(source.batch(step).captions for step in range(count))
    return list(islice(filter(None, captions), count)) or [""]


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write images (n, 3, H, W), -1..1, as one PNG, row by row; white where the last row ends early."""
    columns = min(columns, len(images))
    white = images.new_ones((-len(images) % columns, *images.shape[1:]))
    rows = [torch.cat(list(row), dim=-1) for row in torch.cat([images, white]).split(columns)]
    pixels = (torch.cat(rows, dim=-2).float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    write_whole(path, buffer.getvalue(), overwrite=True)


def save_prompts(prompts: Sequence[str], path: Path) -> None:
    """Write what a preview was drawn from beside it, one a line."""
    write_whole(path.with_suffix(".txt"), "".join(f"{prompt}\n" for prompt in prompts).encode(), overwrite=True)
