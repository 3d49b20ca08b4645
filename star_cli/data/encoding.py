"""Pictures and captions as the frozen models see them: one way for the cache and for training, so that they agree.

Letters: B images, L tokens of the schedule, H W pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from itertools import islice

import torch
from torch import Tensor, nn

from star_cli.models.config import Config
from star_cli.models.float32 import exact_float32
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.vqvae import MultiScaleVQVAE

_DECODING = ("decoder.", "after_quantizer.")
"""Parts of the VQVAE that no token depends on."""
_LARGEST_INT16 = 2**15


@torch.no_grad()
def latent_of(vqvae: MultiScaleVQVAE, pixels: Tensor) -> Tensor:
    """What tokens of pictures stand for, (B, C, h, w), float32, on the VQVAE's device; arguments as in `tokenize`."""
    device = vqvae.quantizer.codebook.weight.device
    with exact_float32(device):
        return vqvae.encode(pixels.to(device))


@torch.no_grad()
def tokenize(vqvae: MultiScaleVQVAE, pixels: Tensor, schedule: ScaleSchedule, scales: int = 0) -> Tensor:
    """Tokens of pictures, in float32, on the VQVAE's device.

    Args:
        vqvae: frozen, in float32.
        pixels: (B, 3, H, W), -1..1, on any device.
        schedule: all scales of this resolution.
        scales: only the first so many; 0: all.
    Returns:
        (B, L of these scales), int64.
    """
    latent = latent_of(vqvae, pixels)
    with exact_float32(latent.device):
        found = vqvae.quantizer.encode_scales(latent, schedule)
        return torch.cat([tokens for tokens, _ in islice(found, scales or len(schedule))], dim=1)


def token_dtype(codes: int) -> torch.dtype:
    """The smaller of two that holds every token of a codebook of so many codes."""
    return torch.int16 if codes <= _LARGEST_INT16 else torch.int32


def hash_vqvae(vqvae: MultiScaleVQVAE) -> str:
    """SHA-256 in hex of what decides tokens: config, encoder and quantiser. The decoder may change."""
    told = hashlib.sha256(_config_words(vqvae.config).encode())
    _tell_tensors(told, vqvae, leave_out=_DECODING)
    return told.hexdigest()


def hash_text_encoder(encoder: TextEncoder) -> str:
    """SHA-256 in hex of what decides text features: the tower's weights, and its config but for where it was found."""
    told = hashlib.sha256(_config_words(encoder.config, leave_out=("source",)).encode())
    _tell_tensors(told, encoder.tower)
    return told.hexdigest()


def _config_words(config: Config, leave_out: tuple[str, ...] = ()) -> str:
    """What a config says beyond its defaults: a field that a later version adds makes no other model of this one."""
    said = {
        field.name: getattr(config, field.name)
        for field in fields(config)  # type: ignore[arg-type]  # every config is a dataclass
        if field.name not in leave_out and getattr(config, field.name) != field.default
    }
    return repr(sorted(said.items()))


def _tell_tensors(told: hashlib._Hash, module: nn.Module, leave_out: tuple[str, ...] = ()) -> None:
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(leave_out):
            continue
        told.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        told.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
