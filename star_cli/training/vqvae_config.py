"""Settings of stage 1, the multi-scale VQVAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from star_cli.errors import OptionError
from star_cli.models.config import Config


@dataclass(frozen=True, kw_only=True)
class VQVAEStageConfig(Config):
    """What stage 1 learns from and by.

    As published (VAR, section 3.2 and equation 5): codebook = "gradient", plain_share = 0, quiet_share = 0,
    crop_share = 0, l1_weight = 0, gradient_weight = 0, and weights for the perceptual and adversarial terms.
    """

    batch_size: int = 8
    """Images of the smallest resolution in a batch; larger ones come in batches of the same number of pixels."""
    large_share: float = 0.2
    """Share of batches at the larger resolutions, so that edges are sharp there too."""
    plain_share: float = 0.25
    """Share of the steps without quantiser, before the codebook is made; 0: it is made in the first step."""
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
    square: Literal["centre", "random"] = "random"
    """Where a picture of a data set that is no square is cut; generated scenes are squares."""
    flip_share: float = 0.5
    """Share of a data set's pictures that are mirrored; generated scenes never are."""

    l1_weight: float = 1.0
    """Weight of the mean absolute error."""
    mse_weight: float = 1.0
    """Weight of the mean squared error."""
    gradient_weight: float = 1.0
    """Weight of the mean absolute error of neighbouring pixels' differences; keeps edges sharp."""
    perceptual_weight: float = 0.0
    """Weight of LPIPS (Zhang et al. 2018), lambda_P in VAR's equation 5; 0 leaves it out."""
    perceptual_net: Literal["vgg", "alex", "squeeze"] = "vgg"
    """The network whose features it compares."""
    perceptual_backbone: str = ""
    """File with that network's ImageNet weights, as torchvision stores them; "": torchvision's own, downloaded once."""

    adversarial_weight: float = 0.0
    """Weight of the patch discriminator's judgement (Isola et al. 2017), lambda_G in VAR's equation 5; 0: none."""
    adversarial_start: float = 0.5
    """Share of the steps before the discriminator begins: it would learn little from blurred images."""
    adversarial_loss: Literal["hinge", "non_saturating"] = "hinge"
    """Hinge loss (Lim and Ye 2017), or the non-saturating one (Goodfellow et al. 2014)."""
    adversarial_adaptive: bool = True
    """Also weigh it by the ratio of gradients at the decoder's last layer (Esser et al. 2021, equation 7)."""
    discriminator_width: int = 64
    """Channels of the discriminator's first layer; each of the next has twice as many, up to eight times."""
    discriminator_layers: int = 3
    """Its layers that halve the resolution: each verdict of 3 is on 70 x 70 pixels."""
    discriminator_learning_rate: float = 1e-4
    """Rate of its own AdamW after warm-up, with the same course as the loop's."""

    quantizer_weight: float = 1.0
    """Weight of the quantisation loss."""
    quantizer_loss: Literal["mean", "sum"] = "mean"
    """Over scales: VAR divides by their number, STAR's code does not."""
    commitment: float = 0.25
    """beta in VAR's equation 5."""
    codebook: Literal["average", "gradient"] = "average"
    """Codes are moving averages of the residuals that chose them, or are learned by the optimiser, as in VAR."""
    codebook_start: Literal["k_means", "uniform"] = "k_means"
    """First codes: k-means over the residuals of a few batches, or small evenly spread vectors."""
    codebook_decay: float = 0.99
    """Decay of the moving average that each code is, and of the count of its uses."""
    revive_below: float = 0.02
    """A code chosen by fewer residuals a step than this share of an even split is moved to a residual of the batch; 0:
    none is moved."""
    usage_window: int = 100
    """Steps over which the figures say which codes were used."""
    quiet_share: float = 0.2
    """Share of the steps, the last ones, in which the decoder alone learns, from a codebook without short codes, which
    the finished VQVAE has no more."""
    quiet_length: float = 0.6
    """Codes shorter than this share of the latents' rms length are short."""

    evaluate_count: int = 64
    """Held-out pictures of an evaluation; a data set without a held-out part of its own gives up so many."""
    evaluate_rfid: bool = False
    """Is the Frechet distance of Inception features (rFID) part of an evaluation? It says little below 10,000."""
    inception_weights: str = ""
    """File with that network's weights, as torch-fidelity stores them; "": its own, downloaded once."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.plain_share < 1 or not 0 <= self.large_share < 1:
            raise OptionError("batch_size must be at least 1, plain_share and large_share at least 0 and below 1")
        self._check_choices()
        for name in ("crop_share", "flip_share", "adversarial_start", "quiet_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        for name in ("perceptual_weight", "adversarial_weight", "revive_below", "commitment"):
            if not getattr(self, name) >= 0:
                raise OptionError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("usage_window", "discriminator_width", "discriminator_layers", "evaluate_count"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.discriminator_learning_rate > 0:
            raise OptionError(f"discriminator_learning_rate must be positive, not {self.discriminator_learning_rate}")
