"""What stage 2 learns from: batches of token maps, or of pixels, with captions or their features.

`TokenSource` makes them from tokens of the generated scenes, with captions written anew; `star_sources.py` makes them
of any pictures; `BatchReader` turns a batch into what the transformer reads.

Letters: B images, L tokens of the scales trained, R pixels per side.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor

from star_cli.data import shapes
from star_cli.data.source import GENERATED
from star_cli.errors import OptionError
from star_cli.models.condition import TextCondition
from star_cli.models.config import Config
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.loop import BatchSource


@dataclass(frozen=True, kw_only=True)
class Portion(Config):
    """One kind of batch of the mixture."""

    resolution: int
    """Pixels per side."""
    batch_size: int
    """Images in such a batch."""
    share: float
    """How often it comes, relative to the other portions."""
    scales: int = 0
    """Train on the first scales alone; 0: on all. Earlier scales never see later ones: exact, and much cheaper."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.share <= 0 or self.scales < 0:
            raise OptionError("a portion needs batch_size of at least 1, a positive share, and scales of at least 0")


def scenes_in_use(portions: Sequence[Portion], steps: int, most: int) -> dict[int, int]:
    """Scenes that a run of so many steps wants tokens of, at each resolution: a short one does not wait for all.

    Args:
        portions: of its batches.
        steps: of the whole run.
        most: as many as a long run learns from.
    Returns:
        As many as the run's batches hold on average, but a batch at least; never more than `most`.
    """
    wanted = {}
    for resolution in sorted({portion.resolution for portion in portions}):
        own = [portion for portion in portions if portion.resolution == resolution]
        share = sum(portion.share for portion in portions)
        drawn = steps * sum(portion.share * portion.batch_size for portion in own) / share
        wanted[resolution] = min(most, max(ceil(drawn), *(portion.batch_size for portion in own)))
    return wanted


@dataclass(frozen=True)
class StarBatch:
    """B images at one resolution with a caption each: tokens or pixels, captions alone or with their features."""

    resolution: int
    scales: int
    tokens: Tensor | None
    """(B, L), int64; None where pixels are given."""
    captions: list[str]
    """"" where the caption is dropped."""
    pixels: Tensor | None = None
    """(B, 3, R, R), float32, -1..1; None where tokens are given."""
    features: TextCondition | None = None
    """Features of the captions; None leaves them to the text encoder."""
    skipped: list[str] = field(default_factory=list)
    """Names of pictures that could not be read and have others in their place."""
    rows: Sequence[int] = ()
    """Place of each image in the whole batch, where this is a share of one; empty: this is the whole. What a step draws
    by chance for an image follows from its place."""

    def __len__(self) -> int:
        """B."""
        return len(self.captions)

    def to(self, device: torch.device | str) -> StarBatch:
        """The same batch on another device."""
        return self._moved(lambda tensor: tensor.to(device))

    def shard(self, rank: int, world: int) -> StarBatch:
        """Every `world`-th image from `rank` on; the shards of all ranks together are the batch."""
        rows = slice(rank, None, world)
        return replace(
            self._moved(lambda tensor: tensor[rows]),
            captions=self.captions[rows],
            skipped=self.skipped[rows],
            rows=(self.rows or range(len(self)))[rows],
        )

    def _moved(self, move: Callable[[Tensor], Tensor]) -> StarBatch:
        features = self.features
        return replace(
            self,
            tokens=None if self.tokens is None else move(self.tokens),
            pixels=None if self.pixels is None else move(self.pixels),
            features=features and TextCondition(move(features.pooled), move(features.states), move(features.mask)),
        )


class StarSource(BatchSource):
    """Where the batches of stage 2 come from."""

    portions: Sequence[Portion]
    seed: int

    @abstractmethod
    def batch(self, step: int) -> StarBatch:
        """The batch of one step."""

    def settings(self) -> dict[str, Any]:
        """Seed, and what kinds of batches there are."""
        portions = {str(number): portion.to_dict() for number, portion in enumerate(self.portions)}
        return {"seed": self.seed, "portions": {"count": len(portions), **portions}}

    def known_tokens(self) -> list[Tensor]:
        """Tokens that are at hand before training, each (n, L): they tell which codes come at all. None: not known."""
        return []


class TokenSource(StarSource):
    """Batches from tokens of the generated scenes, with fresh captions."""

    def __init__(
        self,
        cache: dict[int, Tensor],
        schedules: dict[int, ScaleSchedule],
        portions: Sequence[Portion],
        drop_text: float,
        seed: int,
    ):
        self.cache, self.schedules, self.portions = cache, schedules, portions
        self.drop_text, self.seed = drop_text, seed
        for portion in portions:
            if cache and portion.batch_size > (scenes := len(cache[portion.resolution])):
                raise OptionError(
                    f"a batch of {portion.batch_size} at {portion.resolution} px needs more than {scenes} scenes",
                    "raise stage.scenes, or lower the batch size",
                )

    def batch(self, step: int) -> StarBatch:
        """The batch of one step; the scene in row i of the cache is the one with seed i."""
        rng = random.Random(f"star {self.seed} {step}")
        (portion,) = rng.choices(self.portions, [portion.share for portion in self.portions])
        rows = rng.sample(range(len(self.cache[portion.resolution])), portion.batch_size)
        schedule = self.schedules[portion.resolution]
        scales = portion.scales or len(schedule)
        tokens = self.cache[portion.resolution][rows, : schedule.offsets[scales]].long()
        captions = [self._caption(row, rng) for row in rows]
        return StarBatch(portion.resolution, scales, tokens, captions)

    def settings(self) -> dict[str, Any]:
        """The scenes have no end, so there is no number of pictures."""
        return {**super().settings(), "pictures": GENERATED}

    def known_tokens(self) -> list[Tensor]:
        """The whole cache."""
        return list(self.cache.values())

    def _caption(self, row: int, rng: random.Random) -> str:
        if rng.random() < self.drop_text:
            return ""
        return shapes.caption(shapes.sample(row)[0], rng)
