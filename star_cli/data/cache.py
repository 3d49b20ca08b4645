"""Reading a token cache: token maps, captions and their features, memory-mapped.

`cache_build.py` makes one, `cache_manifest.py` says what it holds. What a row of a batch needs is read from the mapped
files alone, so a cache may be larger than the memory, and worker processes share its pages.

Letters: B rows of a batch, L tokens of the schedule, n pictures of a shard, c captions of a shard, D width of the text
features, T text tokens.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from star_cli.checkpoints.record import FileRecord
from star_cli.data.cache_manifest import (
    EMPTY_CAPTION,
    TOLD,
    Manifest,
    Sides,
    Skipped,
    caption_shard,
    differ,
    read_manifest,
    token_shard,
)
from star_cli.data.encoding import hash_text_encoder, hash_vqvae
from star_cli.data.source import CaptionedImages
from star_cli.errors import DataError
from star_cli.models.condition import TextCondition
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.vqvae import MultiScaleVQVAE

REPAIR = "delete that file and run `star data tokens` again: only what is missing is made"
Shard = Mapping[str, Tensor]


def open_cache(
    folder: Path | str,
    *,
    vqvae: MultiScaleVQVAE | None = None,
    text_encoder: TextEncoder | None = None,
    schedules: Mapping[int, ScaleSchedule] | None = None,
    source: CaptionedImages | None = None,
) -> TokenCache:
    """Open a token cache for what is to be trained with it.

    Args:
        folder: where `star data tokens` wrote it.
        vqvae: whose tokens it must hold.
        text_encoder: whose features it must hold, where it holds any.
        schedules: resolutions it must have, with the sides it must have been made with.
        source: pictures it must have been made from.
    Raises:
        DataError: it is another cache, which says in what; it is unfinished; a shard is missing or cut short.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if not manifest.is_complete:
        raise DataError(f"the token cache {folder} is unfinished", "run the same `star data tokens` again to finish it")
    plan = manifest.plan
    found: list[str] = []
    if source is not None and source.fingerprint != plan.source:
        found.append(differ("source", plan.source, source.fingerprint))
    if vqvae is not None and (given := hash_vqvae(vqvae)) != plan.vqvae:
        found.append(differ("VQVAE", plan.vqvae, given))
    has_features = plan.text_encoder is not None
    if text_encoder is not None and has_features and (given := hash_text_encoder(text_encoder)) != plan.text_encoder:
        found.append(differ("text encoder", plan.text_encoder, given))
    for resolution, schedule in (schedules or {}).items():
        if (sides := manifest.sides.get(resolution)) is None:
            found.append(f"no tokens at {resolution} px, only at {', '.join(map(str, sorted(manifest.sides)))}")
        elif sides != schedule.sides:
            found.append(differ(f"schedule at {resolution} px", list(sides), list(schedule.sides)))
    if found:
        raise DataError(
            f"the token cache {folder} does not fit: {'; '.join(found)}",
            "make another with `star data tokens`, or train with what it was made with",
        )
    for name, record in manifest.files.items():
        _check_size(folder / name, record)
    return TokenCache(folder, manifest)


class TokenCache:
    """An opened cache. Picklable: a worker process maps the files anew.

    Args:
        folder: where the files are.
        manifest: what it says of itself.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder, self.manifest, self.plan = folder, manifest, manifest.plan
        self._skipped = {resolution: [one.index for one in skipped] for resolution, skipped in manifest.skipped.items()}
        self._opened: dict[str, Shard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def __len__(self) -> int:
        """Number of pictures in the source, unreadable ones included."""
        return self.plan.pictures

    @property
    def fingerprint(self) -> str:
        """That of the source."""
        return self.plan.source

    @property
    def sides(self) -> Mapping[int, Sides]:
        """Sides of the token maps at each resolution."""
        return self.manifest.sides

    @property
    def has_features(self) -> bool:
        """Whether the captions' features are in it."""
        return self.plan.text_encoder is not None

    def skipped(self, resolution: int) -> tuple[Skipped, ...]:
        """Pictures that could not be read."""
        return self.manifest.skipped.get(resolution, ())

    def stand_in(self, resolution: int, index: int) -> tuple[int, list[str]]:
        """The first readable picture from `index` on, and the names of those passed over."""
        unreadable = self._skipped.get(resolution, [])
        place = bisect_left(unreadable, index)
        passed: list[str] = []
        while place < len(unreadable) and unreadable[place] == index:
            passed.append(self.skipped(resolution)[place].name)
            index, place = index + 1, place + 1
            if index == self.plan.pictures:
                index, place = 0, 0
        return index, passed

    def tokens(self, resolution: int, indices: Sequence[int]) -> Tensor:
        """Tokens of readable pictures, (B, L), int64.

        Raises:
            DataError: a damaged shard.
        """
        return torch.stack([self._token_row(resolution, index) for index in indices]).long()

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a picture; empty when it has none.

        Raises:
            DataError: a damaged shard.
        """
        shard, rows = self._caption_rows(index)
        edges = shard["text_edges"][rows.start : rows.stop + 1].tolist()
        return tuple(_decode(shard["text"][start:end]) for start, end in pairwise(edges))

    def features(self, picks: Sequence[tuple[int, int] | None]) -> TextCondition:
        """Features of captions, float32; zeros where a text token is none of the caption's, which nothing looks at.

        Args:
            picks: picture and which of its captions; None for the empty caption.
        Raises:
            DataError: a damaged shard, or a cache without features.
        """
        if not self.has_features:
            raise DataError(
                f"the token cache {self.folder} holds no text features", "make one with `star data tokens --features`"
            )
        tokens, width = self.plan.text_tokens, self.plan.text_width
        pooled, states = torch.zeros(len(picks), width), torch.zeros(len(picks), tokens, width)
        mask = torch.zeros(len(picks), tokens, dtype=torch.bool)
        for row, pick in enumerate(picks):
            shard, caption = self._features_row(pick)
            start, end = shard["states_edges"][caption : caption + 2].tolist()
            pooled[row] = shard["pooled"][caption]
            mask[row] = shard["mask"][caption]
            states[row, mask[row]] = shard["states"][start:end].float()
        return TextCondition(pooled, states, mask)

    def verify(self) -> None:
        """Read every byte and compare it with what was written.

        Raises:
            DataError: naming the first file that is not what it was.
        """
        for name, record in sorted(self.manifest.files.items()):
            _check_size(self.folder / name, record)
            if FileRecord.of(self.folder / name).sha256 != record.sha256:
                raise DataError(f"{self.folder / name} is damaged: not the bytes that were written", REPAIR)

    def _token_row(self, resolution: int, index: int) -> Tensor:
        members = self.plan.members(number := index // self.plan.pictures_per_shard)
        unreadable = self._skipped.get(resolution, [])
        before, missing = bisect_left(unreadable, members.start), bisect_left(unreadable, index)
        name = token_shard(resolution, number)
        if name not in self._opened:
            rows = len(members) - (bisect_left(unreadable, members.stop) - before)
            self._opened[name] = self._open_tokens(name, resolution, rows)
        return self._opened[name]["tokens"][index - members.start - (missing - before)]

    def _open_tokens(self, name: str, resolution: int, rows: int) -> Shard:
        sides, path = self.sides[resolution], self.folder / name
        shard, _ = read_shard(path, self.plan.token_identity(resolution, sides))
        tokens = shard["tokens"]
        if tokens.shape != (rows, sum(side * side for side in sides)):
            raise DataError(f"{path} is damaged: tokens of shape {list(tokens.shape)}", REPAIR)
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.plan.codes:
            raise DataError(f"{path} is damaged: tokens outside the codebook of {self.plan.codes}", REPAIR)
        return shard

    def _caption_rows(self, index: int) -> tuple[Shard, range]:
        """The shard of a picture's captions, and which of the shard's captions are its."""
        members = self.plan.members(number := index // self.plan.pictures_per_shard)
        shard = self._open_captions(caption_shard(number), len(members))
        first, last = shard["first"][index - members.start : index - members.start + 2].tolist()
        return shard, range(first, last)

    def _features_row(self, pick: tuple[int, int] | None) -> tuple[Shard, int]:
        if pick is None:
            return self._open_captions(EMPTY_CAPTION, 1), 0
        shard, rows = self._caption_rows(pick[0])
        return shard, rows[pick[1]]

    def _open_captions(self, name: str, pictures: int) -> Shard:
        if name not in self._opened:
            path = self.folder / name
            shard, _ = read_shard(path, self.plan.caption_identity)
            if not _are_whole(shard, pictures, self.has_features):
                raise DataError(f"{path} is damaged: its parts do not fit together", REPAIR)
            self._opened[name] = shard
        return self._opened[name]


def read_shard(path: Path, identity: str) -> tuple[Shard, Mapping[str, Any]]:
    """Map a shard's tensors into memory; gives them and what the file says beside them.

    Raises:
        DataError: it is missing, damaged, cut short, or of another cache.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get(TOLD, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is missing, damaged or cut short: {error}", REPAIR) from error
    if told.get("identity") != identity:
        raise DataError(f"{path} belongs to another token cache", REPAIR)
    return tensors, told


def _are_whole(shard: Shard, pictures: int, has_features: bool) -> bool:
    """Do the offsets of a shard of captions lead to where its other tensors end?"""
    first, edges = shard["first"], shard["text_edges"]
    captions = len(edges) - 1
    is_text = len(first) == pictures + 1 and int(first[-1]) == captions and int(edges[-1]) == len(shard["text"])
    if not has_features:
        return is_text
    edges, states = shard["states_edges"], shard["states"]
    return is_text and len(edges) - 1 == len(shard["pooled"]) == captions and int(edges[-1]) == len(states)


def _decode(text: Tensor) -> str:
    return text.numpy().tobytes().decode("utf-8", "surrogatepass")


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", REPAIR) from error
    if found != record.size_bytes:
        raise DataError(f"{path} is cut short or damaged: {found:,} bytes, expected {record.size_bytes:,}", REPAIR)
