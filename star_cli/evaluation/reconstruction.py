"""How well a VQVAE gives pictures back: PSNR, SSIM, rFID, and how much of the codebook it uses.

Letters: B images, H W pixels, V codes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.data.source import CaptionedImages
from star_cli.errors import BadImageError, DataError, ShapeError
from star_cli.evaluation.frechet import FeatureStatistics, frechet_distance
from star_cli.models.float32 import exact_float32
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE

WINDOW, SIGMA = 11, 1.5
"""SSIM's Gaussian window (Wang et al. 2004, section III.C)."""

_LEAST_ERROR = 1e-10  # an exact copy has 100 dB, and a mean over pictures stays a number


class Features(Protocol):
    """Images to vectors, such as `InceptionFeatures`."""

    width: int

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8 -> (B, width)."""


@dataclass(frozen=True)
class Scores:
    """Of a VQVAE on some pictures."""

    count: int
    """Pictures judged."""
    psnr: float
    """Mean over pictures, dB; the peak is white against black."""
    ssim: float
    """Mean over pictures, at most 1."""
    used: float
    """Share of the codes that were used at all."""
    used_by_side: dict[int, float]
    """Share of the codes that the token maps of each side used."""
    rfid: float | None = None
    """Frechet distance of features of the pictures and their copies; None where it was not asked for."""
    unreadable: tuple[str, ...] = field(default=())
    """Names of pictures that could not be read."""

    def figures(self) -> dict[str, float]:
        """As a training run shows them."""
        shown = {"held-out psnr": self.psnr, "held-out ssim": self.ssim, "held-out codes used": self.used}
        shown |= {f"held-out used side {side}": share for side, share in self.used_by_side.items()}
        return shown if self.rfid is None else {**shown, "held-out rfid": self.rfid}


@torch.no_grad()
def evaluate_reconstruction(
    vqvae: MultiScaleVQVAE,
    source: CaptionedImages,
    resolution: int,
    count: int,
    *,
    schedule: ScaleSchedule,
    features: Features | None = None,
    batch_size: int = 16,
    on_batch: Callable[[int, int], None] | None = None,
) -> Scores:
    """Send pictures through tokens and back, in float32, and compare.

    Args:
        vqvae: in float32, on any device.
        source: whose first pictures are taken, each cut to its middle square.
        resolution: pixels per side.
        count: pictures to take.
        schedule: the scales of that resolution.
        features: for rFID; None: there is none.
        batch_size: pictures at once.
        on_batch: called with pictures done and their total.
    Raises:
        DataError: there are not so many pictures, or none can be read.
    """
    if not 0 < count <= len(source):
        raise DataError(f"cannot judge by {count} pictures: the set holds {len(source)}")
    device = vqvae.after_quantizer.weight.device
    judge = _Judge(vqvae.config.codebook_size, schedule, features)
    unreadable: list[str] = []
    with exact_float32(device):
        for start in range(0, count, batch_size):
            images, names = read_pictures(source, resolution, range(start, min(start + batch_size, count)))
            unreadable += names
            if len(images):
                judge.add(vqvae, images.to(device))
            if on_batch is not None:
                on_batch(min(start + batch_size, count), count)
    return judge.scores(tuple(unreadable))


def read_pictures(source: CaptionedImages, resolution: int, indices: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Pictures of a set, their middle squares, (B, 3, R, R), and the names of those that cannot be read."""
    images, unreadable = [], []
    for index in indices:
        try:
            images.append(source.pixels(index, resolution, "centre", random.Random(f"evaluation {index}")))
        except BadImageError:
            unreadable.append(source.name(index))
    return torch.stack(images) if images else torch.zeros(0, 3, resolution, resolution), unreadable


class _Judge:
    """Sums over batches."""

    def __init__(self, codes: int, schedule: ScaleSchedule, features: Features | None):
        self.schedule, self.features = schedule, features
        self.psnr: list[Tensor] = []
        self.ssim: list[Tensor] = []
        self.used = torch.zeros(len(schedule), codes, dtype=torch.bool)
        self.real, self.copied = (FeatureStatistics(features.width if features else 0) for _ in range(2))

    def add(self, vqvae: MultiScaleVQVAE, images: Tensor) -> None:
        """Judge the copies of some pictures, (B, 3, H, W), -1..1."""
        scales = list(vqvae.quantizer.encode_scales(vqvae.encode(images), self.schedule))
        for scale, (tokens, _) in enumerate(scales):
            self.used[scale, tokens.flatten().cpu()] = True
        copies = vqvae.decode(scales[-1][1])
        pair = [(each + 1) / 2 for each in (images, copies)]  # 0..1
        self.psnr.append(psnr(*pair).cpu())
        self.ssim.append(ssim(*pair).cpu())
        if self.features is not None:
            levels = [(each * 255).round().to(torch.uint8) for each in pair]  # as they are stored
            self.real.add(self.features(levels[0]))
            self.copied.add(self.features(levels[1]))

    def scores(self, unreadable: tuple[str, ...]) -> Scores:
        """Means over all pictures."""
        if not self.psnr:
            raise DataError(f"none of {len(unreadable)} held-out pictures can be read, {unreadable[0]} for one")
        by_side = self.used.float().mean(1).tolist()
        return Scores(
            count=sum(len(each) for each in self.psnr),
            psnr=torch.cat(self.psnr).mean().item(),
            ssim=torch.cat(self.ssim).mean().item(),
            used=self.used.any(0).float().mean().item(),
            used_by_side=dict(zip(self.schedule.sides, by_side, strict=True)),
            rfid=None if self.features is None else frechet_distance(self.real, self.copied),
            unreadable=unreadable,
        )


def psnr(images: Tensor, copies: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair: (B, 3, H, W), 0..1 -> (B,), dB."""
    error = (images - copies).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=_LEAST_ERROR))


def ssim(images: Tensor, copies: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004, equation 13), mean over channels.

    The window is Gaussian, and stays inside the image.

    Args:
        images: (B, 3, H, W), 0..1.
        copies: the same.
    Returns:
        (B,), 1 for equal images.
    Raises:
        ShapeError: a side is smaller than the window.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ShapeError(f"SSIM needs sides of at least {WINDOW} pixels, not {tuple(images.shape[-2:])}")
    values = torch.cat([images, copies, images.square(), copies.square(), images * copies], dim=1)
    # variances are small differences: float64, and no tensor cores, where the device has it
    values = values if values.device.type == "mps" else values.double()
    mean_x, mean_y, xx, yy, xy = _blur(values).chunk(5, dim=1)
    variance_x, variance_y, together = xx - mean_x.square(), yy - mean_y.square(), xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * together + c2)
    likeness = likeness / ((mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2))
    return likeness.flatten(1).mean(1).float()


def _blur(values: Tensor) -> Tensor:
    """Gaussian mean about each place whose window fits: (B, C, H, W) -> (B, C, H - 10, W - 10)."""
    away = torch.arange(WINDOW, dtype=values.dtype, device=values.device) - WINDOW // 2
    weights = torch.exp(-away.square() / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(values.shape[1], 1, 1, -1)
    across = F.conv2d(values, weights, groups=values.shape[1])
    return F.conv2d(across, weights.transpose(2, 3), groups=values.shape[1])
