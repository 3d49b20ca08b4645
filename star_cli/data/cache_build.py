"""Making a token cache: pictures become token maps and captions become features once, training reads them many times.

Files appear whole or not at all, and those that are there are not made again: a stopped run loses one shard of work.

Letters: B images, L tokens of the schedule, n pictures of a shard.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from star_cli.checkpoints.record import FileRecord
from star_cli.data.cache import TokenCache, open_cache, read_shard
from star_cli.data.cache_captions import caption_tensors
from star_cli.data.cache_manifest import (
    EMPTY_CAPTION,
    TOLD,
    Skipped,
    caption_shard,
    token_shard,
    write_manifest,
)
from star_cli.data.cache_plan import CacheOptions, begin_cache, plan_cache
from star_cli.data.encoding import token_dtype, tokenize
from star_cli.data.read_ahead import read_ahead
from star_cli.data.source import CaptionedImages, Crop
from star_cli.data.stored import BadFile
from star_cli.errors import BadImageError, DataError
from star_cli.images import write_whole
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.vqvae import MultiScaleVQVAE

OnCache = Callable[[str, int, int], None]
"""Called while a cache is made: what, how many are done, their total."""

STORED = {"none": torch.float32, "float32": torch.float32, "float16": torch.float16}


def build_cache(
    source: CaptionedImages,
    folder: Path | str,
    vqvae: MultiScaleVQVAE,
    text_encoder: TextEncoder | None,
    schedules: Mapping[int, ScaleSchedule],
    options: CacheOptions | None = None,
    on_progress: OnCache | None = None,
) -> TokenCache:
    """Make a token cache, or what is missing of one, and open it.

    Args:
        source: pictures with captions.
        folder: new, empty, or a cache of the same pictures and models, to which resolutions may be added.
        vqvae: makes the tokens, in float32, where it is.
        text_encoder: makes the features; may be None when `options.features` is "none".
        schedules: sides of the token maps at each resolution wanted.
        options: how.
        on_progress: told how far it is.
    Raises:
        DataError: no pictures, none that can be read, a folder with something else, or with a cache of something else.
        OutputPathError: the folder cannot be made, or written into.
        OutputError: writing failed, for example on a full disk; what was written is whole.
    """
    options = options or CacheOptions()
    if len(source) == 0:
        raise DataError("there are no pictures to make tokens of", "see `star data check`")
    builder = _Builder(source, Path(folder), vqvae, text_encoder, schedules, options, on_progress)
    builder.run()
    return open_cache(folder)


class _Builder:
    """One call of `build_cache`."""

    def __init__(
        self,
        source: CaptionedImages,
        folder: Path,
        vqvae: MultiScaleVQVAE,
        text_encoder: TextEncoder | None,
        schedules: Mapping[int, ScaleSchedule],
        options: CacheOptions,
        on_progress: OnCache | None,
    ):
        self.source, self.folder, self.options, self.on_progress = source, folder, options, on_progress
        self.vqvae = vqvae
        self.text_encoder = text_encoder if options.features != "none" else None
        self.plan = plan_cache(source, vqvae, self.text_encoder, options)
        self.manifest = begin_cache(folder, self.plan, schedules)
        self.files: dict[str, FileRecord] = {}
        self.skipped = dict(self.manifest.skipped)

    def run(self) -> None:
        """All of it, the captions first: they are quick, and what is wrong with them is known early."""
        self._captions()
        for resolution in sorted(self.manifest.sides):
            self._tokens(resolution)
        count = sum(int(self._shard(caption_shard(k))["first"][-1]) for k in range(self.plan.shards))
        done = replace(self.manifest, skipped=self.skipped, captions=count, files=self.files, is_complete=True)
        if done != self.manifest:
            write_manifest(self.folder, done)

    # -- captions ---------------------------------------------------------------------------------------------------

    def _captions(self) -> None:
        identity, dtype, done = self.plan.caption_identity, STORED[self.options.features], 0
        for number in range(self.plan.shards):
            members = self.plan.members(number)
            if self._kept(caption_shard(number), identity) is None:
                texts = [self._captions_of(index) for index in members]
                self._write(
                    caption_shard(number), caption_tensors(texts, self.text_encoder, dtype), {"identity": identity}
                )
            done += len(members)
            self._tell("captions", done, self.plan.pictures)
        if self.text_encoder is not None and self._kept(EMPTY_CAPTION, identity) is None:
            self._write(EMPTY_CAPTION, caption_tensors([("",)], self.text_encoder, dtype), {"identity": identity})

    def _captions_of(self, index: int) -> tuple[str, ...]:
        """None where they cannot be read: the picture then has no tokens, which says why."""
        try:
            return self.source.captions(index)
        except BadImageError:
            return ()

    # -- tokens -----------------------------------------------------------------------------------------------------

    def _tokens(self, resolution: int) -> None:
        identity = self.plan.token_identity(resolution, self.manifest.sides[resolution])
        skipped: dict[int, list[Skipped]] = {}
        missing = []
        for number in range(self.plan.shards):
            told = self._kept(token_shard(resolution, number), identity)
            if told is None:
                missing.append(number)
            else:
                skipped[number] = [Skipped(**one) for one in told["skipped"]]
        done = self.plan.pictures - sum(len(self.plan.members(number)) for number in missing)
        self._tell(f"tokens at {resolution} px", done, self.plan.pictures)
        for number, tokens, bad in self._encoded(resolution, missing, done):
            skipped[number] = bad
            told = {"identity": identity, "skipped": [asdict(one) for one in bad]}
            self._write(token_shard(resolution, number), {"tokens": tokens}, told)
        self.skipped[resolution] = tuple(chain.from_iterable(skipped[number] for number in range(self.plan.shards)))
        if len(self.skipped[resolution]) == self.plan.pictures:
            first = self.skipped[resolution][0]
            raise DataError(
                f"none of {self.plan.pictures:,} pictures can be read; the first, {first.name}: {first.reason}",
                "see `star data check`",
            )

    def _encoded(
        self, resolution: int, missing: Sequence[int], done: int
    ) -> Iterator[tuple[int, Tensor, list[Skipped]]]:
        """Number, tokens (n, L) and unreadable pictures of each missing shard."""
        size, schedule = self.options.batch_size_at(resolution), ScaleSchedule(self.manifest.sides[resolution])
        dtype = token_dtype(self.plan.codes)
        batches = [
            (number, members[start : start + size])
            for number in missing
            for members in [self.plan.members(number)]
            for start in range(0, len(members), size)
        ]
        read = partial(_read, self.source, resolution, self.options.crop)
        pictures = read_ahead(read, [batch for _, batch in batches], self.options.workers)
        rows = [torch.zeros(0, schedule.length, dtype=dtype)]
        bad: list[Skipped] = []
        for (number, batch), (pixels, skipped) in zip(batches, pictures, strict=True):
            if len(pixels):
                rows.append(tokenize(self.vqvae, pixels, schedule).to("cpu", dtype))
            bad += skipped
            done += len(batch)
            self._tell(f"tokens at {resolution} px", done, self.plan.pictures)
            if batch.stop == self.plan.members(number).stop:
                yield number, torch.cat(rows), bad
                rows, bad = rows[:1], []

    # -- files ------------------------------------------------------------------------------------------------------

    def _kept(self, name: str, identity: str) -> Mapping[str, Any] | None:
        """What a shard says beside its tensors, if it is there, whole and of this cache."""
        path = self.folder / name
        try:
            _, told = read_shard(path, identity)
            record = self.manifest.files.get(name)
            if record is None or path.stat().st_size != record.size_bytes:
                record = FileRecord.of(path)
        except (DataError, OSError):
            return None
        self.files[name] = record
        return told

    def _write(self, name: str, tensors: dict[str, Tensor], told: dict[str, Any]) -> None:
        if self.manifest.is_complete:  # no longer: a shard of it is missing, or it gets another resolution
            self.manifest = replace(self.manifest, is_complete=False)
            write_manifest(self.folder, self.manifest)
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={TOLD: json.dumps(told)})
        write_whole(self.folder / name, data, overwrite=True)
        self.files[name] = FileRecord(hashlib.sha256(data).hexdigest(), len(data))

    def _shard(self, name: str) -> Mapping[str, Tensor]:
        return read_shard(self.folder / name, self.plan.caption_identity)[0]

    def _tell(self, name: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(name, done, total)


def _read(source: CaptionedImages, resolution: int, crop: Crop, indices: Sequence[int]) -> tuple[Tensor, list[Skipped]]:
    """The readable ones of some pictures, (B, 3, H, W), and the others."""
    pixels, skipped = [], []
    for index in indices:
        try:
            source.captions(index)  # where these cannot be read, training has no use for the picture
            pixels.append(source.pixels(index, resolution, crop, random.Random(f"crop {index}")))
        except BadImageError as error:
            bad = BadFile.of(source.name(index), error)
            skipped.append(Skipped(index, bad.name, bad.reason))
    return torch.stack(pixels) if pixels else torch.zeros(0), skipped
