"""The published code's surroundings of a drawing: its random streams, and half precision where it uses that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from star_cli.generation.randomness import Official
from star_cli.models.vqvae import MultiScaleVQVAE


@contextmanager
def as_published(seed: int, device: torch.device) -> Iterator[Official]:
    """Draw inside this. Float16 autocast on CUDA; the global generators are seeded, too, and those of the CPU
    and of this device left as they were.

    Args:
        seed: of the tokens' generator and of the global ones.
        device: where the model is.
    """
    is_cuda = device.type == "cuda"
    forked = [device.index or 0] if is_cuda else []
    with torch.random.fork_rng(forked), torch.autocast(device.type, dtype=torch.float16, enabled=is_cuda):
        torch.manual_seed(seed)
        yield Official(seed, device)


def decode_as_published(vqvae: MultiScaleVQVAE, f_hat: Tensor, by_class: bool) -> Tensor:
    """Pixels of the latent that was drawn, (3, H, W) in -1..1; (1, C, h, w) in.

    STAR decodes in float32. VAR decodes under the same autocast as it draws, so that its pixels are float16 on CUDA.
    """
    device = f_hat.device.type
    is_half = by_class and device == "cuda"
    with torch.autocast(device, dtype=torch.float16, enabled=is_half):
        pixels = vqvae.decode(f_hat.float())[0]
    return pixels.half() if is_half else pixels
