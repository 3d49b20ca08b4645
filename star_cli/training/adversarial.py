"""The adversarial term: a discriminator judges patches, and the decoder learns to pass (Isola et al. 2017; VQGAN).

Both sides' losses are one sum with one backward pass: the decoder's part sees the discriminator's weights as constants,
the discriminator's part sees the decoded images as constants, so each side's gradients are its own.

Letters: B images, H W pixels, h w verdicts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from star_cli.errors import OptionError
from star_cli.training.ranks import mean_over_ranks

AdversarialLoss = Literal["hinge", "non_saturating"]

_LARGEST_WEIGHT = 1e4
_DELTA = 1e-6  # Esser et al. 2021, equation 7


class PatchDiscriminator(nn.Module):
    """Real or decoded? One verdict for each patch (PatchGAN).

    4x4 convolutions, leaky ReLU; `layers` of stride 2, then two of stride 1. GroupNorm instead of BatchNorm: a verdict
    then depends on its own image alone, whatever batch and process it is in.
    """

    def __init__(self, width: int = 64, layers: int = 3):
        super().__init__()
        self.layers = layers
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        entering = width
        for index in range(1, layers + 1):
            leaving = width * min(2**index, 8)
            stride = 2 if index < layers else 1
            parts += [
                nn.Conv2d(entering, leaving, 4, stride=stride, padding=1),
                nn.GroupNorm(_groups(leaving), leaving),
                nn.LeakyReLU(0.2),
            ]
            entering = leaving
        self.body = nn.Sequential(*parts, nn.Conv2d(entering, 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)  # as in pix2pix

    def check_side(self, side: int) -> None:
        """Is an image of this side large enough for a verdict?

        Raises:
            OptionError: it is not.
        """
        if side // 2**self.layers < 3:
            raise OptionError(
                f"a discriminator of {self.layers} layers cannot judge {side} pixels",
                f"set discriminator_layers lower, or train on at least {3 * 2**self.layers} pixels",
            )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), -1..1 -> (B, 1, h, w): above 0 for real."""
        return self.body(images)


def _groups(channels: int) -> int:
    return 32 if channels % 32 == 0 else 1


@dataclass(frozen=True)
class Judgement:
    """One round of the game."""

    loss: Tensor
    """What the decoder loses by being told apart, (); its gradient reaches the images alone."""
    discriminator_loss: Tensor
    """What the discriminator loses by mistakes, (); its gradient reaches the discriminator alone."""
    correct: Tensor
    """Share of verdicts that are right, ()."""

    def add_up(self, weight: Tensor) -> Tensor:
        """Both sides' part of one loss, (): the decoder's by its weight, the discriminator's for its gradient alone."""
        return weight * self.loss + (self.discriminator_loss - self.discriminator_loss.detach())

    def figures(self) -> dict[str, Tensor]:
        """What is worth showing."""
        return {
            "adversarial": self.loss.detach(),
            "discriminator loss": self.discriminator_loss.detach(),
            "discriminator right": self.correct,
        }


def judge(discriminator: nn.Module, restored: Tensor, images: Tensor, kind: AdversarialLoss) -> Judgement:
    """Let the discriminator look at decoded and real images, (B, 3, H, W) each, -1..1."""
    constants = {key: value.detach() for key, value in discriminator.named_parameters()}
    told: Tensor = functional_call(discriminator, constants, (restored,)).float()  # (B, 1, h, w)
    fake, real = discriminator(torch.cat([restored.detach(), images])).float().chunk(2)
    if kind == "hinge":
        loss = -told.mean()
        against = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    else:
        loss = F.softplus(-told).mean()
        against = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    with torch.no_grad():
        correct = 0.5 * ((real > 0).float().mean() + (fake <= 0).float().mean())
    return Judgement(loss, against, correct)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How much the adversarial loss may count: the ratio of gradients at the decoder's last layer, ().

    Esser et al. 2021, equation 7: both losses then pull equally hard. Several processes take the ratio of their mean
    gradients, as one process with all rows would.

    Args:
        reconstruction: the loss of the images, perceptual term included, ().
        adversarial: what the decoder loses to the discriminator, ().
        last_layer: weight of the decoder's last layer.
    """
    norms = []
    for loss in (reconstruction, adversarial):
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        norms.append(mean_over_ranks(gradient.detach().float()).norm())
    return (norms[0] / (norms[1] + _DELTA)).clamp(0, _LARGEST_WEIGHT)
