"""The multi-scale VQVAE: convolutional encoder, quantiser, decoder (VAR, section 3.2; the network follows VQGAN).

Letters: B images, H W pixels, h w latent, C channels, Z code width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import ShapeError
from star_cli.models.config import VQVAEConfig
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule

NORM_EPS = 1e-6


def _norm(channels: int, config: VQVAEConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.groups, channels, eps=NORM_EPS)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the width changes."""

    def __init__(self, entering: int, leaving: int, config: VQVAEConfig):
        super().__init__()
        self.norm1 = _norm(entering, config)
        self.conv1 = nn.Conv2d(entering, leaving, 3, padding=1)
        self.norm2 = _norm(leaving, config)
        self.conv2 = nn.Conv2d(leaving, leaving, 3, padding=1)
        self.shortcut = nn.Conv2d(entering, leaving, 1) if entering != leaving else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class PixelAttention(nn.Module):
    """Single-head attention among all cells of the latent."""

    def __init__(self, channels: int, config: VQVAEConfig):
        super().__init__()
        self.norm = _norm(channels, config)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same."""
        queries, keys, values = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (B, h * w, C) each
        mixed = F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])[:, 0]
        return x + self.out(mixed.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, config: VQVAEConfig):
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, config)
        self.attention = PixelAttention(channels, config)
        self.block2 = ResidualBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same."""
        return self.block2(self.attention(self.block1(x)))


class Level(nn.Module):
    """Residual blocks of one resolution; each followed by attention where `attentive`; then a change of resolution."""

    def __init__(self, entering: int, width: int, blocks: int, attentive: bool, resize: nn.Module, config: VQVAEConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(entering if index == 0 else width, width, config) for index in range(blocks)
        )
        self.attention = nn.ModuleList(PixelAttention(width, config) for _ in range(blocks if attentive else 0))
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attention):
                x = self.attention[index](x)
        return self.resize(x)


class Halve(nn.Module):
    """3x3 convolution of stride 2, padded right and below only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h / 2, w / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Nearest-neighbour enlargement, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Encoder(nn.Module):
    """Image to latent."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.fold = nn.PixelUnshuffle(config.patch)
        self.stem = nn.Conv2d(3 * config.patch**2, config.channels, 3, padding=1)
        self.levels = nn.ModuleList(
            Level(
                widths[max(index - 1, 0)] if index else config.channels,
                width,
                config.blocks,
                index == last,
                Halve(width) if index < last else nn.Identity(),
                config,
            )
            for index, width in enumerate(widths)
        )
        self.middle = Middle(widths[-1], config)
        self.norm = _norm(widths[-1], config)
        self.head = nn.Conv2d(widths[-1], config.code_dim, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> (B, Z, h, w)."""
        x = self.stem(self.fold(image))
        for level in self.levels:
            x = level(x)
        return self.head(F.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """Latent to image; level 0 is the finest, so they run in reverse."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.stem = nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)
        self.middle = Middle(widths[-1], config)
        self.levels = nn.ModuleList(
            Level(
                widths[min(index + 1, last)],
                width,
                config.blocks + 1,
                index == last,
                Double(width) if index > 0 else nn.Identity(),
                config,
            )
            for index, width in enumerate(widths)
        )
        self.norm = _norm(widths[0], config)
        self.head = nn.Conv2d(widths[0], 3 * config.patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(config.patch)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, Z, h, w) -> (B, 3, H, W), not clamped."""
        x = self.middle(self.stem(latent))
        for level in reversed(self.levels):
            x = level(x)
        return self.unfold(self.head(F.silu(self.norm(x))))


class MultiScaleVQVAE(nn.Module):
    """Image <-> token maps."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.before_quantizer = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1)
        self.quantizer = MultiScaleQuantizer(config)
        self.after_quantizer = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1)
        self.decoder = Decoder(config)

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Encoder and decoder in `dtype`; the quantiser stays float32, for it decides tokens."""
        self.to(dtype)
        self.quantizer.float()

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> latent (B, Z, h, w), float32.

        Raises:
            ShapeError: sides that are no multiple of the latent factor.
        """
        if image.shape[-1] % self.config.factor or image.shape[-2] % self.config.factor:
            raise ShapeError(f"image sides must be multiples of {self.config.factor}, not {tuple(image.shape[-2:])}")
        return self.before_quantizer(self.encoder(image.to(self.before_quantizer.weight.dtype))).float()

    def tokenize(self, image: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
        """Token maps of an image, (B, side * side) int64 for each scale."""
        return [tokens for tokens, _ in self.quantizer.encode_scales(self.encode(image), schedule)]

    def reconstruct(self, f_hat: Tensor) -> Tensor:
        """Decode without clamping, as losses need it: (B, Z, h, w) -> (B, 3, H, W)."""
        return self.decoder(self.after_quantizer(f_hat.to(self.after_quantizer.weight.dtype))).float()

    def decode(self, f_hat: Tensor) -> Tensor:
        """Final f_hat (B, Z, h, w) -> image (B, 3, H, W), float32 in -1..1."""
        return self.reconstruct(f_hat).clamp(-1, 1)
