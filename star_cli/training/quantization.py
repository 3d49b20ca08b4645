"""The quantiser in training: straight-through gradients and VAR's quantisation loss (VAR, equation 5).

Letters: B images, Z code width, h w latent, l tokens of one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule

OverScales = Literal["mean", "sum"]
"""How the losses of the scales become one: VAR divides by their number, STAR's code does not."""


@dataclass(frozen=True)
class Quantized:
    """A latent after the quantiser."""

    latent: Tensor
    """f_hat of all scales with the encoder's gradient passed straight through, (B, Z, h, w)."""
    loss: Tensor
    """Quantisation loss, (): commitment gives the encoder gradients, the rest phi, and codes that learn by gradient."""
    tokens: list[Tensor]
    """Codes that each scale chose, (B, l)."""
    residuals: list[Tensor]
    """What each scale had to say, (B, l, Z)."""
    error: Tensor
    """Mean squared error of f_hat as a share of the latent's variance, ()."""


def quantize(
    quantizer: MultiScaleQuantizer,
    latent: Tensor,
    schedule: ScaleSchedule,
    commitment: float,
    over_scales: OverScales = "mean",
) -> Quantized:
    """Quantise as in training.

    Args:
        quantizer: whose phi, and codebook where it requires gradients, get gradients from the loss.
        latent: from the encoder, (B, Z, h, w), float32.
        schedule: h = w = its last side.
        commitment: beta in VAR's equation 5, the weight of what pulls the encoder towards the codes.
        over_scales: mean or sum of the scales' losses.
    """
    held = latent.detach()
    before = torch.zeros_like(held)
    losses, tokens, residuals = [], [], []
    for scale, (chosen, f_hat) in enumerate(quantizer.encode_scales(latent, schedule)):
        losses.append(commitment * F.mse_loss(f_hat.detach(), latent) + F.mse_loss(f_hat, held))
        residuals.append(quantizer.next_input(held - before, schedule.sides[scale]))
        tokens.append(chosen)
        before = f_hat.detach()
    each = torch.stack(losses)
    loss = each.mean() if over_scales == "mean" else each.sum()
    return Quantized(latent + (before - held), loss, tokens, residuals, F.mse_loss(before, held) / held.var())
