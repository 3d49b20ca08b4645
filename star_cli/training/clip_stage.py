"""Stage 0 as a stage of the shared loop; what it learns from and by is in `clip.py`."""

from __future__ import annotations

from torch import Tensor

from star_cli.training.clip import ClipBatch, ClipStageConfig, build_clip, clip_batch, clip_loss
from star_cli.training.loop import BatchSource, Stage
from star_cli.training.reading import Reader


class CaptionedSource(BatchSource):
    """Batches of images and captions."""

    def __init__(self, config: ClipStageConfig, seed: int):
        self.config, self.seed = config, seed

    def batch(self, step: int) -> ClipBatch:
        """The batch of one step."""
        return clip_batch(self.config, step, self.seed)


class ClipStage(Stage):
    """Image tower and text tower; only the latter is shipped."""

    name = "clip"

    def __init__(self, config: ClipStageConfig, seed: int):
        super().__init__()
        self.source = CaptionedSource(config, seed)
        self.clip = build_clip(config)
        self.reader = Reader(config.embed_width)
        self.reading_weight = config.reading_weight

    def loss(self, batch: ClipBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """The contrastive loss and the reading loss."""
        return clip_loss(self.clip, batch, self.reader, self.reading_weight)
