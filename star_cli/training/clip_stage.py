"""Stage 0 as a stage of the shared loop; what it learns from and by is in `clip.py`."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from star_cli.data.order import RowOrder
from star_cli.data.reader import read_rows
from star_cli.data.source import GENERATED, CaptionedImages, Crop, count_in_words
from star_cli.models.text_open_clip import load_tokenizer
from star_cli.training.clip import (
    ClipBatch,
    ClipStageConfig,
    build_clip,
    clip_batch,
    clip_loss,
    retrieval_accuracy,
)
from star_cli.training.loop import BatchSource, Stage
from star_cli.training.reading import Reader


class ShapeFamilies(BatchSource):
    """Batches of generated scenes with hard negatives, and of captions alone for the reading loss."""

    def __init__(self, config: ClipStageConfig, seed: int):
        self.config, self.seed = config, seed

    def settings(self) -> dict[str, Any]:
        """The scenes have no end, so there is no number of pictures."""
        return {"seed": self.seed, "pictures": GENERATED}

    def batch(self, step: int) -> ClipBatch:
        """The batch of one step."""
        return clip_batch(self.config, step, self.seed)


class PicturePairs(BatchSource):
    """Batches of any pictures, each with one of its captions, for the contrastive loss alone.

    Args:
        pictures: where they come from.
        config: `batch_size` pairs of `image_size` pixels.
        crop: where squares are taken.
        seed: decides order, crops and choice of captions.
    """

    reads_pictures = True

    def __init__(self, pictures: CaptionedImages, config: ClipStageConfig, crop: Crop, seed: int):
        self.pictures, self.config, self.seed = pictures, config, seed
        self.crop: Crop = crop
        self.order = RowOrder(len(pictures), seed)

    def settings(self) -> dict[str, Any]:
        """Seed, crop, and how many pictures there are."""
        return {"seed": self.seed, "crop": self.crop, "pictures": count_in_words(self.pictures)}

    def batch(self, step: int) -> ClipBatch:
        """The batch of one step."""
        rows = self.order.rows(step, self.config.batch_size)
        rng = random.Random(f"clip {self.seed} {step}")
        read = read_rows(self.pictures, rows, self.config.image_size, self.crop, rng)
        tokens = load_tokenizer(self.config.max_tokens)(read.captions)
        return ClipBatch(read.pixels, tokens, None, [bad.name for bad in read.skipped])


class ClipStage(Stage):
    """Image tower and text tower; only the latter is shipped.

    Args:
        config: both towers, and the batches.
        seed: decides all that is random in a batch.
        pictures: what to learn from; None: generated scenes, whose attributes a reader learns to tell as well.
        crop: where squares are taken from `pictures`.
    """

    name = "clip"
    shards = False  # each caption is told from all images of the batch

    def __init__(
        self, config: ClipStageConfig, seed: int, pictures: CaptionedImages | None = None, crop: Crop = "random"
    ):
        super().__init__()
        self.config = config
        self.source: BatchSource = (
            ShapeFamilies(config, seed) if pictures is None else PicturePairs(pictures, config, crop, seed)
        )
        self.clip = build_clip(config)
        self.reader = Reader(config.embed_width) if pictures is None else None
        self.reading_weight = config.reading_weight

    def loss(self, batch: ClipBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """The contrastive loss and the reading loss."""
        # captions are short: on a CPU the fused kernel's backward costs more than it saves
        with sdpa_kernel(SDPBackend.MATH):
            loss, figures = clip_loss(self.clip, batch, self.reader, self.reading_weight)
        return loss, figures | self.unreadable_figure(batch.skipped)

    @property
    def is_judged(self) -> bool:
        """By held-out generated scenes, where it learns from the others."""
        return self.reader is not None

    def evaluate(self) -> dict[str, float]:
        """How often held-out captions and images find each other, see `retrieval_accuracy`."""
        return {f"held-out {name}": value for name, value in retrieval_accuracy(self.clip, self.config).items()}
