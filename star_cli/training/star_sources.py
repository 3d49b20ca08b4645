"""Sources of stage 2's batches over any set of pictures: from its token cache, or from its pixels.

Both give the same pictures with the same captions at each step, whatever the step before was, so that training from the
cache gives the loss of training from pixels.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from star_cli.data.cache import TokenCache
from star_cli.data.order import RowOrder
from star_cli.data.reader import first_readable
from star_cli.data.source import GENERATED, CaptionedImages, Crop, count_in_words
from star_cli.errors import DataError, OptionError
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.batch_order import PortionOrder
from star_cli.training.star_batches import Portion, StarBatch, StarSource

_NEXT_ORDER = 2**32  # between the seeds of two portions' orders: further apart than anybody's seeds


class _OrderedBatches(StarSource):
    """Epochs over a counted set of pictures, each portion through its own.

    Row i of a step has random numbers of its own: a process may make some rows of a batch and leave the others to other
    processes.
    """

    reads_pictures = True

    def __init__(
        self,
        pictures: int,
        schedules: Mapping[int, ScaleSchedule],
        portions: Sequence[Portion],
        drop_text: float,
        seed: int,
    ):
        if not portions or not 0 <= drop_text <= 1:
            raise OptionError(f"batches need at least one portion, and drop_text from 0 to 1, not {drop_text}")
        for portion in portions:
            schedule = schedules.get(portion.resolution)
            if schedule is None or portion.scales > len(schedule):
                raise OptionError(
                    f"portion of {portion.scales or 'all'} scales at {portion.resolution} px fits no schedule"
                )
        if pictures < 1:
            raise DataError("there are no pictures to train on", "see `star data check`")
        self.schedules, self.portions, self.drop_text, self.seed = dict(schedules), tuple(portions), drop_text, seed
        self._portion_order = PortionOrder([portion.share for portion in portions], f"{seed}")
        self._orders = [RowOrder(pictures, seed + number * _NEXT_ORDER) for number in range(len(portions))]

    @property
    @abstractmethod
    def pictures(self) -> int | str:
        """As `count_in_words` tells of them."""

    def settings(self) -> dict[str, Any]:
        """From the cache and from pixels the same: one may go on with a run of the other."""
        return {**super().settings(), "pictures": self.pictures}

    def batch(self, step: int) -> StarBatch:
        """The batch of one step."""
        return self.part(step, 0, 1)[0]

    def part(self, step: int, rank: int, world: int) -> tuple[StarBatch, int]:
        """Rows rank::world of a step's batch, made without the others, and how many rows the whole batch has.

        Raises:
            OptionError: there are fewer rows than processes.
        """
        number, earlier = self._portion_order.at(step)
        portion = self.portions[number]
        if portion.batch_size < world:
            raise OptionError(
                f"a batch of {portion.batch_size} cannot be shared by {world}",
                "raise batch_size, or lower accumulate or the processes",
            )
        indices = self._orders[number].rows(earlier, portion.batch_size)
        rows = range(rank, portion.batch_size, world)
        scales = portion.scales or len(self.schedules[portion.resolution])
        made = self._make(step, portion, scales, [(row, indices[row]) for row in rows])
        return (made if world == 1 else replace(made, rows=rows)), portion.batch_size

    @abstractmethod
    def _make(self, step: int, portion: Portion, scales: int, rows: Sequence[tuple[int, int]]) -> StarBatch:
        """The batch of some rows, each with the index of its picture."""

    def _words_rng(self, step: int, row: int) -> random.Random | None:
        """Chooses among a picture's captions; None where the caption is dropped."""
        rng = random.Random(f"words {self.seed} {step} {row}")
        return None if rng.random() < self.drop_text else rng


class CachedBatches(_OrderedBatches):
    """Batches from a token cache: nothing is encoded that is in it.

    Args:
        cache: tokens, captions and perhaps features.
        schedules: of the portions' resolutions; the cache must have been made with these sides.
        portions: kinds of batches.
        drop_text: share of captions dropped, for guidance.
        seed: decides all that is random.
        captions: where captions are written anew each time, as the generated scenes can; the cached ones when None.
        use_features: hand the cached features over; when they are there, if None.
        tells_tokens: let the stage look at all tokens before it begins, see `StarSource.known_tokens`.
    Raises:
        DataError: the cache has not what is asked for.
        OptionError: no portion, or one that fits no schedule.
    """

    def __init__(
        self,
        cache: TokenCache,
        schedules: Mapping[int, ScaleSchedule],
        portions: Sequence[Portion],
        drop_text: float,
        seed: int,
        captions: CaptionedImages | None = None,
        use_features: bool | None = None,
        tells_tokens: bool = False,
    ):
        super().__init__(len(cache), schedules, portions, drop_text, seed)
        for resolution in {portion.resolution for portion in portions}:
            if cache.sides.get(resolution) != schedules[resolution].sides:
                raise DataError(
                    f"the token cache {cache.folder} has no tokens at {resolution} px with sides "
                    f"{list(schedules[resolution].sides)}",
                    "add them with `star data tokens`",
                )
        if captions is not None and captions.fingerprint != cache.fingerprint:
            raise DataError(f"the token cache {cache.folder} was made of other pictures: {cache.fingerprint}")
        if use_features and captions is not None:
            raise OptionError("captions that are written anew have no features in a cache")
        self.cache, self.fresh, self.tells_tokens = cache, captions, tells_tokens
        self.use_features = cache.has_features and captions is None if use_features is None else use_features

    @property
    def pictures(self) -> int | str:
        """Those in the cache, unless their captions are written anew."""
        return len(self.cache) if self.fresh is None else GENERATED

    def known_tokens(self) -> list[Tensor]:
        """The whole cache, if that is wanted."""
        if not self.tells_tokens:
            return []
        resolutions = sorted({portion.resolution for portion in self.portions})
        return [self.cache.tokens(resolution, range(len(self.cache))) for resolution in resolutions]

    def _make(self, step: int, portion: Portion, scales: int, rows: Sequence[tuple[int, int]]) -> StarBatch:
        indices, skipped = [], []
        for _, wanted in rows:
            index, passed = self.cache.stand_in(portion.resolution, wanted)
            indices.append(index)
            skipped += passed
        length = self.schedules[portion.resolution].offsets[scales]
        tokens = self.cache.tokens(portion.resolution, indices)[:, :length].contiguous()
        captions, picks = [], []
        for (row, _), index in zip(rows, indices, strict=True):
            text, pick = self._caption(index, self._words_rng(step, row))
            captions.append(text)
            picks.append(pick)
        features = self.cache.features(picks) if self.use_features else None
        return StarBatch(portion.resolution, scales, tokens, captions, features=features, skipped=skipped)

    def _caption(self, index: int, rng: random.Random | None) -> tuple[str, tuple[int, int] | None]:
        """One caption of a picture, and where its features are; as `CaptionedImages.caption` chooses."""
        if rng is None:
            return "", None
        if self.fresh is not None:
            return self.fresh.caption(index, rng), None
        captions = self.cache.captions(index)
        if not captions:
            return "", None
        number = rng.choice(range(len(captions)))
        return captions[number], (index, number)


class PixelBatches(_OrderedBatches):
    """Batches of pixels; the VQVAE and the text encoder read them where training runs.

    Args:
        source: pictures with captions.
        schedules: of the portions' resolutions.
        portions: kinds of batches.
        drop_text: share of captions dropped, for guidance.
        seed: decides all that is random.
        crop: where the square is taken; "random" anew at each step.
    Raises:
        DataError: no pictures.
        OptionError: no portion, or one that fits no schedule.
    """

    def __init__(
        self,
        source: CaptionedImages,
        schedules: Mapping[int, ScaleSchedule],
        portions: Sequence[Portion],
        drop_text: float,
        seed: int,
        crop: Crop = "centre",
    ):
        super().__init__(len(source), schedules, portions, drop_text, seed)
        self.source: CaptionedImages = source
        self.crop: Crop = crop

    @property
    def pictures(self) -> int | str:
        """Those of the source."""
        return count_in_words(self.source)

    def _make(self, step: int, portion: Portion, scales: int, rows: Sequence[tuple[int, int]]) -> StarBatch:
        skipped: list[str] = []
        found = [self._picture(step, row, wanted, portion.resolution, skipped) for row, wanted in rows]
        pixels, captions = torch.stack([picture for picture, _ in found]), [caption for _, caption in found]
        return StarBatch(portion.resolution, scales, None, captions, pixels=pixels, skipped=skipped)

    def _picture(self, step: int, row: int, wanted: int, resolution: int, skipped: list[str]) -> tuple[Tensor, str]:
        """The first readable picture from `wanted` on, as a token cache has it, and a caption."""
        count = len(self.source)
        words = self._words_rng(step, row)

        def read(index: int) -> tuple[Tensor, str]:
            # a dropped caption is read, too: where it cannot be, the cache has no tokens of the picture either
            caption = self.source.caption(index, self._words_rng(step, row) or random.Random(0))
            crop = random.Random(f"crop {self.seed} {step} {row}")
            return self.source.pixels(index, resolution, self.crop, crop), caption if words else ""

        onwards = ((wanted + further) % count for further in range(count))
        return first_readable(onwards, read, lambda index, _: skipped.append(self.source.name(index)))[1]
