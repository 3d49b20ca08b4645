"""Stage 1: the multi-scale VQVAE (VAR, section 3.2, equation 5 and algorithms 1 and 2).

As published, the codebook is learned by the optimiser, and perceptual and adversarial terms join the loss: all of them
are settings. The defaults are made for the generated scenes. There, for the first part of the stage, it is a plain
autoencoder. Then k-means over multi-scale residuals gives the first codebook, and from there each code follows the mean
of the residuals that chose it (van den Oord et al. 2017, A.1). For the last part only the decoder learns, and the short
codes have made room for one that is exactly zero: a residual too small to be seen then always gets the same token.
Without that, such residuals spread over hundreds of tiny codes, tokens that look random and show nothing, and the
transformer spends its training on them.

Letters: B images, Z code width, V codes, h w latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star_cli.data.source import CaptionedImages
from star_cli.errors import OptionError
from star_cli.evaluation.inception import InceptionFeatures
from star_cli.evaluation.reconstruction import evaluate_reconstruction, read_pictures
from star_cli.models.config import VQVAEConfig
from star_cli.models.quantizer import Phi
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE, PixelAttention, ResidualBlock
from star_cli.training.adversarial import PatchDiscriminator, adaptive_weight, judge
from star_cli.training.codebook import (
    CodebookAverage,
    CodebookUsage,
    first_codes,
    multi_scale_residuals,
    quieten,
)
from star_cli.training.perceptual import LEAST_SIDE, PerceptualLoss
from star_cli.training.preview import save_grid
from star_cli.training.quantization import quantize
from star_cli.training.ranks import gather_rows, mean_over_ranks, world
from star_cli.training.stage import Stage, model_settings
from star_cli.training.vqvae_batches import ImageBatch, check_crops, image_source, split_data
from star_cli.training.vqvae_config import VQVAEStageConfig

Figures = dict[str, Tensor]

FIRST_BATCHES = 16
"""Batches whose residuals the first codebook is made from."""


class VQVAEStage(Stage):
    """Encoder, quantiser and decoder together, and the discriminator where there is one.

    Args:
        model: the VQVAE to train.
        config: what from and by what.
        schedules: scale schedule of each resolution to train at.
        steps: of the whole stage.
        seed: decides the batches.
        data: pictures to train on; None: the generated scenes.
        held_out: pictures it is judged by; None: scenes of other seeds, or a part of the data that training then does
            not see.
    Raises:
        OptionError, DataError: the settings do not fit the data or each other.
        DownloadError, WeightsFileError: weights of the perceptual loss are not to be had.
    """

    is_quietened: Tensor
    """Have the short codes of this codebook been taken away? ()."""

    name = "vqvae"
    shards = True  # all that moves without gradients is counted over all processes
    leaves_unused = True  # phi and codebook in the first steps, the encoder in the last
    needs_whole = True  # codes are moved by what was chosen

    def __init__(
        self,
        model: VQVAEConfig,
        config: VQVAEStageConfig,
        schedules: dict[int, ScaleSchedule],
        steps: int,
        seed: int,
        data: CaptionedImages | None = None,
        held_out: CaptionedImages | None = None,
    ):
        super().__init__()
        self.config = config
        self.schedules = {schedule.last_side: schedule for schedule in schedules.values()}
        if config.crop_share:
            side = config.crop // model.factor
            self.schedules[side] = crop_schedule(next(iter(schedules.values())), side)
        self.resolutions = sorted(schedules)
        self._model_settings = model_settings(model, schedules)
        self.plain_steps = round(config.plain_share * steps)
        self.smallest = min([self.resolutions[0], *check_crops(config, self.resolutions[0], model.factor)])
        self.quiet_step = steps - round(config.quiet_share * steps)
        data, self.held_out = split_data(data, held_out, config.evaluate_count)
        self.source = image_source(data, config, self.resolutions, self.plain_steps, seed)
        self.vqvae = MultiScaleVQVAE(model).to(memory_format=torch.channels_last)
        # a moving average is not a parameter of the optimiser
        self.vqvae.quantizer.codebook.requires_grad_(config.codebook == "gradient")
        start_as_shortcuts(self.vqvae)
        self.average = CodebookAverage(model.codebook_size, model.code_dim, config)
        sides = (side for schedule in self.schedules.values() for side in schedule.sides)
        self.usage = CodebookUsage(model.codebook_size, sides, config.usage_window)
        self.register_buffer("is_quietened", torch.zeros((), dtype=torch.bool))
        self._made_anew = False
        self._add_terms(steps)

    def _add_terms(self, steps: int) -> None:
        """What the perceptual and the adversarial term and rFID need; what is missing is known before any work."""
        config = self.config
        if config.perceptual_weight:
            if self.smallest < LEAST_SIDE:
                raise OptionError(f"the perceptual loss compares at least {LEAST_SIDE} pixels, not {self.smallest}")
            backbone = Path(config.perceptual_backbone) if config.perceptual_backbone else None
            self._frozen = (PerceptualLoss(config.perceptual_net, backbone),)  # a tuple keeps it out of the parameters
        self.discriminator: PatchDiscriminator | None = None
        if config.adversarial_weight:
            self.discriminator = PatchDiscriminator(config.discriminator_width, config.discriminator_layers)
            self.discriminator.check_side(self.smallest)
        self.opponent_rate = config.discriminator_learning_rate
        self.adversarial_step = round(config.adversarial_start * steps)
        weights = Path(config.inception_weights) if config.inception_weights else None
        self.features = InceptionFeatures(weights) if config.evaluate_rfid else None

    # -- one step ---------------------------------------------------------------------------------------------------

    def loss(self, batch: ImageBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Reconstruction and quantisation loss, and what the discriminator adds; notes which codes were chosen."""
        images = batch.images.contiguous(memory_format=torch.channels_last)
        is_quiet = step >= self.quiet_step
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_quiet):
            latent = self.vqvae.encode(images)
            quantized, vq_loss, figures = latent, latent.new_zeros(()), Figures()
            if step >= self.plain_steps:
                self._prepare_codebook(latent, step)
                with torch.autocast(images.device.type, enabled=False):
                    quantized, vq_loss, figures = self._quantize(latent, step, moving=not is_quiet)
        restored = self.vqvae.reconstruct(quantized)
        loss, told = self._image_loss(restored, images)
        game, verdicts = self._game(loss, restored, images, step)
        total = loss + self.config.quantizer_weight * vq_loss
        unreadable = self.unreadable_figure(batch.unreadable)
        return total if game is None else total + game, {**told, **figures, **unreadable, **verdicts}

    def _image_loss(self, restored: Tensor, images: Tensor) -> tuple[Tensor, Figures]:
        """Difference of pixels, of edges, and of what a network sees, weighed."""
        config = self.config
        difference = restored - images
        l1, mse = difference.abs().mean(), difference.square().mean()
        edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        loss = config.l1_weight * l1 + config.mse_weight * mse + config.gradient_weight * edges
        figures = {"psnr": 10 * torch.log10(4 / mse.detach())}
        if config.perceptual_weight:
            (perceptual,) = self._frozen
            distance = perceptual.to(images.device)(restored, images)
            loss = loss + config.perceptual_weight * distance
            figures["lpips"] = distance.detach()
        return loss, figures

    def _quantize(self, latent: Tensor, step: int, moving: bool) -> tuple[Tensor, Tensor, Figures]:
        """Straight-through f_hat, (B, Z, h, w); the quantisation loss; figures."""
        schedule, config = self.schedules[latent.shape[-1]], self.config
        given = quantize(self.vqvae.quantizer, latent, schedule, config.commitment, config.quantizer_loss)
        if self.training:
            self.usage.note(schedule, given.tokens, step)
        if self.training and moving:
            self.average.note(given.residuals, given.tokens)
        figures = {"quantising error": given.error, **self.usage.figures(schedule, step)}
        return given.latent, given.loss, figures

    def _game(self, loss: Tensor, restored: Tensor, images: Tensor, step: int) -> tuple[Tensor | None, Figures]:
        """What both sides of the game add to the loss; nothing before the discriminator begins."""
        config = self.config
        if self.discriminator is None or step < self.adversarial_step:
            return None, {}
        judgement = judge(self.discriminator, restored, images, config.adversarial_loss)
        weight = loss.new_tensor(config.adversarial_weight)
        if config.adversarial_adaptive and loss.requires_grad:
            weight = weight * adaptive_weight(loss, judgement.loss, self.vqvae.decoder.head.weight)
        return judgement.add_up(weight), judgement.figures() | {"adversarial weight": weight}

    def opponent(self) -> nn.Module | None:
        """The discriminator."""
        return self.discriminator

    def after_step(self, step: int) -> None:
        """Move the codebook by what all rows of the step chose."""
        if step < self.quiet_step:
            self.is_quietened.fill_(False)  # a run may be made longer while it is quiet: then it is no more
        self.average.move(self.vqvae.quantizer)
        self.usage.agree()

    def settings(self) -> dict[str, Any]:
        """The VQVAE and the scales of each resolution, too."""
        return {**super().settings(), **self._model_settings}

    # -- codebook ---------------------------------------------------------------------------------------------------

    def _prepare_codebook(self, latent: Tensor, step: int) -> None:
        """Make the codebook before its first use, and quieten it once when the last part begins."""
        if not self.average.has_started:
            self._make_codebook(latent)
            self._made_anew = True
        # also past that step, when a run was made shorter; not by latents that would call every code short
        if step >= self.quiet_step and not self.is_quietened and (shortest := self._short(latent)).isfinite():
            quieten(self.vqvae.quantizer, shortest)
            self.is_quietened.fill_(True)
            self._made_anew = True

    def set_anew(self) -> list[nn.Parameter]:
        """The codebook, when it was made or quietened: half an old code and half a new one would be neither."""
        was_made, self._made_anew = self._made_anew, False
        return list(self.vqvae.quantizer.codebook.parameters()) if was_made else []

    def _short(self, latent: Tensor) -> Tensor:
        """Length below which codes count as short, by the latents of all processes: ()."""
        squares = latent.detach().square().sum(1).mean()
        return self.config.quiet_length * (mean_over_ranks(squares) if world() > 1 else squares).sqrt()

    @torch.no_grad()
    def _make_codebook(self, latent: Tensor) -> None:
        """First codebook: from residuals of a few batches' latents, all scales together."""
        latents = [gather_rows(latent.detach())]
        for number in range(1, FIRST_BATCHES):
            batch = self.source.batch(-number)
            self.unreadable.update(dict.fromkeys(batch.unreadable))
            images = batch.images.to(latent.device).contiguous(memory_format=torch.channels_last)
            parts = images.split(-(-len(images) // world()))  # no more at once than in a step
            latents.append(torch.cat([self.vqvae.encode(part) for part in parts]))
        with torch.autocast(latent.device.type, enabled=False):
            vectors = torch.cat([multi_scale_residuals(each, self.schedules[each.shape[-1]]) for each in latents])
            vectors = vectors[vectors.isfinite().all(1)]
            if not len(vectors):  # the step will be skipped; the next one tries again
                return
            codes = first_codes(vectors, self.config, self.vqvae.quantizer.config.codebook_size)
        self.vqvae.quantizer.codebook.weight.copy_(codes)
        self.average.start(codes)

    # -- what it can do so far --------------------------------------------------------------------------------------

    @property
    def is_judged(self) -> bool:
        """By held-out pictures, always."""
        return True

    def evaluate(self) -> dict[str, float]:
        """How well held-out pictures come back, at the smallest resolution; float32."""
        config, resolution = self.config, self.resolutions[0]
        scores = evaluate_reconstruction(
            self.vqvae,
            self.held_out,
            resolution,
            min(config.evaluate_count, len(self.held_out)),
            schedule=self._schedule(resolution),
            features=None if self.features is None else self.features.to(self.vqvae.after_quantizer.weight.device),
        )
        self.unreadable.update(dict.fromkeys(scores.unreadable))
        return scores.figures()

    def preview(self, path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        images, _ = read_pictures(self.held_out, self.resolutions[0], range(min(8, len(self.held_out))))
        if not len(images):
            return
        images = images.to(self.vqvae.after_quantizer.weight.device)
        pairs = torch.cat([images, reconstruct(self.vqvae, images, self._schedule(self.resolutions[0]))])
        save_grid(pairs.cpu(), path, columns=len(images))

    def _schedule(self, resolution: int) -> ScaleSchedule:
        return self.schedules[resolution // self.vqvae.config.factor]


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


@torch.no_grad()
def reconstruct(vqvae: MultiScaleVQVAE, images: Tensor, schedule: ScaleSchedule) -> Tensor:
    """Images through tokens and back, (B, 3, H, W)."""
    *_, (_, f_hat) = vqvae.quantizer.encode_scales(vqvae.encode(images), schedule)
    return vqvae.decode(f_hat)
