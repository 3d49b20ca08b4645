"""Token cache: generated scenes as token maps, computed once and used in many steps.

Letters: L tokens of the schedule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from star_cli.data import shapes
from star_cli.data.encoding import token_dtype
from star_cli.images import write_whole
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE

PART = 512
"""Scenes in one file of the cache; a cut-off run loses at most this many."""


def scene_tokens(
    vqvae: MultiScaleVQVAE,
    schedule: ScaleSchedule,
    resolution: int,
    first_seed: int,
    count: int,
    folder: Path,
    on_part: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Tokens of the scenes with seeds first_seed, first_seed + 1, ...: (count, L), see `token_dtype`.

    Args:
        vqvae: makes the tokens.
        schedule: sides of the token maps at this resolution.
        resolution: pixels per side.
        first_seed: seed of the first scene.
        count: number of scenes.
        folder: parts of the cache; those already there and whole are read, not made again. Their names tell
            tokenizer and sides.
        on_part: called with scenes done and their total.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    maker = _fingerprint(vqvae, schedule)
    for start in range(0, count, PART):
        size = min(PART, count - start)
        path = folder / f"{resolution}-{maker}-{first_seed + start}-{size}.safetensors"
        tokens = _read(path, (size, schedule.length), token_dtype(vqvae.config.codebook_size))
        if tokens is None:
            tokens = _encode(vqvae, schedule, resolution, range(first_seed + start, first_seed + start + size))
            write_whole(path, save({"tokens": tokens}), overwrite=True)
        parts.append(tokens)
        if on_part is not None:
            on_part(start + size, count)
    return torch.cat(parts)


def _read(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Tensor | None:
    """Tokens of a part, (scenes, L); None where it is missing or damaged, so that it is made again."""
    try:
        tokens = load_file(path)["tokens"]
    except (FileNotFoundError, KeyError, SafetensorError):
        return None
    return tokens if tokens.shape == shape and tokens.dtype == dtype else None


def _fingerprint(vqvae: MultiScaleVQVAE, schedule: ScaleSchedule) -> str:
    """Changes when other tokens would come out."""
    told = hashlib.sha256(repr((schedule.sides, vqvae.config)).encode())
    for value in vqvae.state_dict().values():
        told.update(value.contiguous().numpy().tobytes())
    return told.hexdigest()[:12]


@torch.no_grad()
def _encode(vqvae: MultiScaleVQVAE, schedule: ScaleSchedule, resolution: int, seeds: range) -> Tensor:
    batch = max(1, 16 * 256**2 // resolution**2)
    rows = []
    for start in range(0, len(seeds), batch):
        scenes = [shapes.sample(seed)[0] for seed in seeds[start : start + batch]]
        images = torch.stack([shapes.render_tensor(scene, resolution) for scene in scenes])
        with torch.autocast("cpu", torch.bfloat16):
            latent = vqvae.encode(images.contiguous(memory_format=torch.channels_last))
        token_maps = [tokens for tokens, _ in vqvae.quantizer.encode_scales(latent, schedule)]
        rows.append(torch.cat(token_maps, dim=1).to(token_dtype(vqvae.config.codebook_size)))
    return torch.cat(rows)
