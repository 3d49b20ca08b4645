"""What the transformer reads of a batch: tokens and text features, by the frozen VQVAE and text encoder where needed.

Letters: B images, L tokens of the scales trained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from star_cli.data.encoding import latent_of, tokenize
from star_cli.models.condition import TextCondition
from star_cli.models.float32 import exact_float32
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.star_batches import StarBatch


class BatchReader:
    """The frozen half of stage 2. Float32 and without gradients, whatever surrounds it.

    Args:
        vqvae: for batches of pixels.
        text_encoder: for batches without text features.
        schedules: scale schedule of each resolution.
        remembered: captions whose features are kept, those seen last; 0 keeps none. Each is then encoded alone, so that
            its features do not depend on what was remembered, and a resumed run goes on bit for bit.
    """

    def __init__(
        self,
        vqvae: MultiScaleVQVAE,
        text_encoder: TextEncoder,
        schedules: Mapping[int, ScaleSchedule],
        remembered: int = 0,
    ):
        self.vqvae, self.text_encoder, self.schedules = vqvae, text_encoder, schedules
        self.remembered = remembered
        self._known: OrderedDict[str, TextCondition] = OrderedDict()

    def read(self, batch: StarBatch) -> tuple[Tensor, TextCondition]:
        """Tokens of the scales trained, (B, L), int64, and the features of the captions; both where the batch is."""
        tokens = self.tokens(batch)
        return tokens, self.condition(batch).to(tokens.device)

    def tokens(self, batch: StarBatch) -> Tensor:
        """(B, L), int64."""
        if batch.tokens is not None:
            return batch.tokens
        assert batch.pixels is not None, "a batch has tokens or pixels"
        return tokenize(self.vqvae, batch.pixels, self.schedules[batch.resolution], batch.scales)

    def latent(self, batch: StarBatch) -> Tensor:
        """What the tokens of a batch of pixels stand for, (B, C, h, w), float32."""
        assert batch.pixels is not None, "tokens alone do not tell what they left over"
        return latent_of(self.vqvae, batch.pixels)

    def condition(self, batch: StarBatch) -> TextCondition:
        """Features of B captions, float32."""
        if batch.features is not None:
            return batch.features
        with exact_float32(self.text_encoder.device):
            if not self.remembered:
                return self.text_encoder.encode(batch.captions, rows=len(batch.captions))
            return self._recalled(batch.captions)

    def _recalled(self, captions: Sequence[str]) -> TextCondition:
        distinct = list(dict.fromkeys(captions))
        new = [caption for caption in distinct if caption not in self._known]
        if new:
            found = self.text_encoder.encode(new, rows=1)
            for row, caption in enumerate(new):
                # a clone: a view of one row would keep the whole batch
                one = found.rows(slice(row, row + 1))
                self._known[caption] = TextCondition(one.pooled.clone(), one.states.clone(), one.mask.clone())
        for caption in distinct:
            self._known.move_to_end(caption)
        parts = [self._known[caption] for caption in captions]
        while len(self._known) > self.remembered:
            self._known.popitem(last=False)
        return TextCondition(
            torch.cat([part.pooled for part in parts]),
            torch.cat([part.states for part in parts]),
            torch.cat([part.mask for part in parts]),
        )
