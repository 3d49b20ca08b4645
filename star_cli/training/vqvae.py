"""Stage 1: the multi-scale VQVAE on generated scenes (VAR, section 3.2 and algorithms 1 and 2).

For the first part of the stage it is a plain autoencoder. Then k-means over multi-scale residuals gives the first
codebook, and from there each code follows the mean of the residuals that chose it (van den Oord et al. 2017, A.1).
For the last part only the decoder learns, and the short codes have made room for one that is exactly zero: a residual
too small to be seen then always gets the same token. Without that, such residuals spread over hundreds of tiny codes,
tokens that look random and show nothing, and the transformer spends its training on them.

Letters: B images, Z code width, V codes, h w latent.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.data import shapes
from star_cli.errors import OptionError
from star_cli.models.config import Config, VQVAEConfig
from star_cli.models.quantizer import MultiScaleQuantizer, Phi
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE, PixelAttention, ResidualBlock
from star_cli.training.loop import BatchSource, Stage
from star_cli.training.preview import save_grid


@dataclass(frozen=True, kw_only=True)
class VQVAEStageConfig(Config):
    """What stage 1 learns from and by."""

    batch_size: int = 8
    """Images of the smallest resolution in a batch; larger ones come in batches of the same number of pixels."""
    large_share: float = 0.2
    """Share of batches at the larger resolutions, so that edges are sharp there too."""
    plain_share: float = 0.25
    """Share of the steps without quantiser, before the codebook is made."""
    plain_crop: int = 64
    """Pixels per side of the crops these first steps learn from: convolutions are local, and small steps are fast."""
    plain_batch_size: int = 48
    """Crops in a batch of these first steps."""
    crop: int = 128
    """Pixels per side of the crops that some later batches are made of: most of a whole scene is plain background."""
    crop_batch_size: int = 16
    """Crops in such a batch."""
    crop_share: float = 0.5
    """Share of such batches."""
    l1_weight: float = 1.0
    """Weight of the mean absolute error."""
    mse_weight: float = 1.0
    """Weight of the mean squared error."""
    gradient_weight: float = 1.0
    """Weight of the mean absolute error of neighbouring pixels' differences; keeps edges sharp."""
    quantizer_weight: float = 1.0
    """Weight of the quantisation loss, averaged over scales."""
    commitment: float = 0.25
    """beta in VAR's equation 5."""
    codebook_decay: float = 0.99
    """Decay of the moving average that each code is."""
    revive_below: float = 0.02
    """A code chosen by fewer residuals a step than this share of an even split is moved to a residual of the batch."""
    quiet_share: float = 0.2
    """Share of the steps, the last ones, in which the decoder alone learns, from a codebook without short codes."""
    quiet_length: float = 0.6
    """Codes shorter than this share of the latents' rms length are short."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.plain_share < 1 or not 0 <= self.large_share < 1:
            raise OptionError("batch_size must be at least 1, plain_share and large_share at least 0 and below 1")


class ImageSource(BatchSource):
    """Batches of rendered scenes, now and then at a larger resolution; crops of them in the first steps."""

    def __init__(self, config: VQVAEStageConfig, resolutions: Sequence[int], plain_steps: int, seed: int):
        self.config, self.resolutions, self.plain_steps, self.seed = config, sorted(resolutions), plain_steps, seed

    def batch(self, step: int) -> Tensor:
        """(B, 3, H, W), -1..1."""
        rng = random.Random(f"vqvae {self.seed} {step}")
        smallest, *larger = self.resolutions
        resolution = rng.choice(larger) if larger and rng.random() < self.config.large_share else smallest
        if 0 <= step < self.plain_steps:
            return self._crops(resolution, self.config.plain_crop, self.config.plain_batch_size, rng)
        if rng.random() < self.config.crop_share:
            return self._crops(resolution, self.config.crop, self.config.crop_batch_size, rng)
        count = max(1, self.config.batch_size * smallest**2 // resolution**2)
        return torch.stack([shapes.render_tensor(self._scene(rng), resolution) for _ in range(count)])

    def _scene(self, rng: random.Random) -> shapes.Scene:
        return shapes.scene(rng.randrange(shapes.HELD_OUT_SEED))

    def _crops(self, resolution: int, crop: int, count: int, rng: random.Random) -> Tensor:
        """Crops about one thing of each scene, (count, 3, crop, crop)."""
        crops = []
        for _ in range(count):
            scene = self._scene(rng)
            thing = rng.choice(scene.things)
            left, top = (
                min(max(round((middle + rng.uniform(-0.15, 0.15)) * resolution) - crop // 2, 0), resolution - crop)
                for middle in (thing.x, thing.y)
            )
            crops.append(shapes.render_tensor(scene, resolution)[:, top : top + crop, left : left + crop])
        return torch.stack(crops)


class VQVAEStage(Stage):
    """Encoder, quantiser and decoder together."""

    name = "vqvae"

    def __init__(
        self, model: VQVAEConfig, config: VQVAEStageConfig, schedules: dict[int, ScaleSchedule], steps: int, seed: int
    ):
        super().__init__()
        self.config = config
        self.schedules = {schedule.last_side: schedule for schedule in schedules.values()}
        self.schedules[config.crop // model.factor] = crop_schedule(
            next(iter(schedules.values())), config.crop // model.factor
        )
        self.resolutions = sorted(schedules)
        self.plain_steps = round(config.plain_share * steps)
        self.quiet_step = steps - round(config.quiet_share * steps)
        self.source = ImageSource(config, self.resolutions, self.plain_steps, seed)
        self.vqvae = MultiScaleVQVAE(model).to(memory_format=torch.channels_last)
        self.vqvae.quantizer.codebook.requires_grad_(False)  # a moving average, not a parameter of the optimiser
        start_as_shortcuts(self.vqvae)
        self.average = CodebookAverage(model.codebook_size, model.code_dim, config)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction and quantisation loss; moves the codebook on the way."""
        images = batch.contiguous(memory_format=torch.channels_last)
        is_quiet = step >= self.quiet_step
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_quiet):
            latent = self.vqvae.encode(images)
            quantized, vq_loss = latent, latent.new_zeros(())
            metrics: dict[str, float] = {}
            if step >= self.plain_steps:
                with torch.autocast("cpu", enabled=False):
                    if step == self.plain_steps:
                        self._make_codebook(latent)
                    if step == self.quiet_step:
                        quieten(self.vqvae.quantizer, self.config.quiet_length * length(latent))
                    quantized, vq_loss, metrics = self._quantize(latent, moving=not is_quiet)
        images_out = self.vqvae.reconstruct(quantized)
        difference = images_out - images
        l1, mse = difference.abs().mean(), difference.square().mean()
        edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        config = self.config
        loss = config.l1_weight * l1 + config.mse_weight * mse + config.gradient_weight * edges
        psnr = 10 * torch.log10(4 / mse.detach()).item()
        return loss + config.quantizer_weight * vq_loss, {"psnr": psnr, **metrics}

    def _quantize(self, latent: Tensor, moving: bool) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Straight-through f_hat, (B, Z, h, w); VAR's quantisation loss averaged over scales; figures."""
        schedule = self.schedules[latent.shape[-1]]
        quantizer, held = self.vqvae.quantizer, latent.detach()
        before = torch.zeros_like(held)
        losses, residuals, chosen = [], [], []
        for scale, (tokens, f_hat) in enumerate(quantizer.encode_scales(latent, schedule)):
            losses.append(self.config.commitment * F.mse_loss(f_hat.detach(), latent) + F.mse_loss(f_hat, held))
            residuals.append(quantizer.next_input(held - before, schedule.sides[scale]).flatten(0, 1))
            chosen.append(tokens.flatten())
            before = f_hat.detach()
        if self.training and moving:
            self.average.update(quantizer, torch.cat(residuals), torch.cat(chosen))
        used = (self.average.counts > self.average.dead_below).float().mean().item()
        error = (F.mse_loss(before, held) / held.var()).item()
        return latent + (before - held), torch.stack(losses).mean(), {"codes used": used, "quantising error": error}

    @torch.no_grad()
    def _make_codebook(self, latent: Tensor) -> None:
        """First codebook: k-means over residuals of a few batches' latents, all scales together."""
        latents = [latent.detach()]
        while len(latents) < 16:
            images = self.source.batch(-len(latents)).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                latents.append(self.vqvae.encode(images))
        vectors = torch.cat([multi_scale_residuals(each, self.schedules[each.shape[-1]]) for each in latents])
        codes = k_means(vectors, self.vqvae.quantizer.config.codebook_size, torch.Generator().manual_seed(0))
        self.vqvae.quantizer.codebook.weight.copy_(codes)
        self.average.start(codes)

    def preview(self, path: Path) -> None:
        """Held-out scenes above their reconstructions."""
        scenes = [shapes.sample(shapes.HELD_OUT_SEED + index)[0] for index in range(8)]
        images = torch.stack([shapes.render_tensor(scene, self.resolutions[0]) for scene in scenes])
        save_grid(torch.cat([images, reconstruct(self.vqvae, images, self.schedules)]), path, columns=8)


def crop_schedule(schedule: ScaleSchedule, side: int) -> ScaleSchedule:
    """The scales of a schedule that fit a crop, the crop's own side last."""
    return ScaleSchedule((*(smaller for smaller in schedule.sides if smaller < side), side))


def start_as_shortcuts(vqvae: MultiScaleVQVAE) -> None:
    """Every residual branch begins at zero and every phi as the identity: colours pass through from the first step."""
    for module in vqvae.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, PixelAttention):
            nn.init.zeros_(module.out.weight)
        elif isinstance(module, Phi):
            nn.init.dirac_(module.conv.weight)
            if module.conv.bias is not None:
                nn.init.zeros_(module.conv.bias)


def reconstruct(vqvae: MultiScaleVQVAE, images: Tensor, schedules: dict[int, ScaleSchedule]) -> Tensor:
    """Images through tokens and back, (B, 3, H, W); `schedules` by last side."""
    with torch.no_grad():
        latent = vqvae.encode(images)
        *_, (_, f_hat) = vqvae.quantizer.encode_scales(latent, schedules[latent.shape[-1]])
        return vqvae.decode(f_hat)


@torch.no_grad()
def multi_scale_residuals(latent: Tensor, schedule: ScaleSchedule) -> Tensor:
    """What each scale would have to say if codes were exact: (B, Z, h, w) -> (B * L, Z)."""
    residual, vectors = latent, []
    for side in schedule.sides:
        pooled = F.interpolate(residual, size=(side, side), mode="area")
        vectors.append(pooled.flatten(2).transpose(1, 2).flatten(0, 1))
        residual = residual - F.interpolate(pooled, size=latent.shape[-2:], mode="bicubic")
    return torch.cat(vectors)


@torch.no_grad()
def k_means(vectors: Tensor, count: int, generator: torch.Generator, rounds: int = 12) -> Tensor:
    """Lloyd's algorithm: (n, Z) -> (count, Z). A centre that nobody chose moves to a random vector."""
    if len(vectors) < count:
        vectors = vectors.repeat(-(-count // len(vectors)), 1)
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in vectors.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        counts = torch.bincount(nearest, minlength=count)
        lonely = counts == 0
        centres = sums / counts.clamp(min=1)[:, None]
        centres[lonely] = vectors[torch.randint(len(vectors), (int(lonely.sum()),), generator=generator)]
    return centres


@torch.no_grad()
def quieten(quantizer: MultiScaleQuantizer, shortest: Tensor) -> None:
    """The shortest code becomes zero; every other one below `shortest` goes so far away that nothing chooses it."""
    codes = quantizer.codebook.weight
    lengths = codes.norm(dim=1)
    away = codes / lengths.clamp(min=1e-6)[:, None] * 4 * lengths.max()
    codes.copy_(torch.where((lengths < shortest)[:, None], away, codes))
    codes[lengths.argmin()] = 0


def length(vectors: Tensor) -> Tensor:
    """Root mean square of the length over channels: (B, Z, h, w) -> ()."""
    return vectors.detach().square().sum(1).mean().sqrt()


class CodebookAverage(nn.Module):
    """Each code as the moving average of the residuals that chose it."""

    counts: Tensor
    sums: Tensor
    dead_below: Tensor

    def __init__(self, codes: int, width: int, config: VQVAEStageConfig):
        super().__init__()
        self.config = config
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("dead_below", torch.zeros(()))

    def start(self, codes: Tensor) -> None:
        """Begin with these codes, each as if chosen once."""
        self.counts.fill_(1.0)
        self.sums.copy_(codes)

    @torch.no_grad()
    def update(self, quantizer: MultiScaleQuantizer, residuals: Tensor, chosen: Tensor) -> None:
        """Move the codebook.

        Args:
            quantizer: owner of the codebook, whose weight is overwritten.
            residuals: what was to be said, (n, Z).
            chosen: the codes that said it, (n,).
        """
        counts = torch.bincount(chosen, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, residuals)
        self.counts.lerp_(counts, 1 - self.config.codebook_decay)
        self.sums.lerp_(sums, 1 - self.config.codebook_decay)
        self.dead_below.fill_(self.config.revive_below * len(chosen) / len(self.counts))
        dead = self.counts < self.dead_below
        if dead.any():
            taken = residuals[torch.randint(len(residuals), (int(dead.sum()),))]
            self.counts[dead] = len(chosen) / len(self.counts) * 0.1
            self.sums[dead] = taken * self.counts[dead][:, None]
        quantizer.codebook.weight.copy_(self.sums / self.counts[:, None])
