"""What a token cache is to hold: options, the plan that follows from them, and whether a folder can take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from star_cli.data.cache_manifest import (
    MANIFEST,
    CachePlan,
    FeatureDtype,
    Manifest,
    differ,
    differences,
    is_shard,
    read_manifest,
    write_manifest,
)
from star_cli.data.encoding import hash_text_encoder, hash_vqvae
from star_cli.data.place import nearest_folder
from star_cli.data.source import CaptionedImages, Crop
from star_cli.errors import DataError, OptionError
from star_cli.images import check_writable
from star_cli.models.config import Config
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.vqvae import MultiScaleVQVAE


@dataclass(frozen=True, kw_only=True)
class CacheOptions(Config):
    """How a cache is made."""

    crop: Crop = "centre"
    """Where the square is taken; "random": one square for each picture, the same in every epoch."""
    features: FeatureDtype = "float32"
    """How the captions' features are stored. float32 gives the loss that the text encoder itself gives; float16 is half
    as large (docs/token-cache.md has the drift); none leaves them to the text encoder, and keeps the words alone."""
    batch_size: int = 0
    """Pictures in one pass of the VQVAE; 0: 16 at 256 pixels, and fewer where they are larger."""
    pictures_per_shard: int = 1024
    """Pictures whose tokens, or captions, are in one file: what a stopped run may lose."""
    workers: int = 0
    """Processes that read pictures ahead; 0: this one reads them."""

    def __post_init__(self) -> None:
        self._check_choices()
        if self.pictures_per_shard < 1 or min(self.batch_size, self.workers) < 0:
            raise OptionError(
                "a token cache needs pictures_per_shard of at least 1, batch_size and workers of at least 0"
            )

    def batch_size_at(self, resolution: int) -> int:
        """Pictures in one pass of the VQVAE at this resolution."""
        return self.batch_size or max(1, 16 * 256**2 // resolution**2)


def plan_cache(
    source: CaptionedImages, vqvae: MultiScaleVQVAE, text_encoder: TextEncoder | None, options: CacheOptions
) -> CachePlan:
    """What decides the content of a cache.

    Raises:
        OptionError: features are asked for, and there is no text encoder.
    """
    if options.features != "none" and text_encoder is None:
        raise OptionError("text features need a text encoder, and this model has none", "use --no-features")
    return CachePlan(
        source=source.fingerprint,
        pictures=len(source),
        crop=options.crop,
        vqvae=hash_vqvae(vqvae),
        codes=vqvae.config.codebook_size,
        text_encoder=None if text_encoder is None else hash_text_encoder(text_encoder),
        text_width=0 if text_encoder is None else text_encoder.width,
        text_tokens=0 if text_encoder is None else text_encoder.max_tokens,
        features=options.features,
        pictures_per_shard=options.pictures_per_shard,
    )


def check_cache_folder(folder: Path) -> None:
    """Could a cache be there? Quick, and asked before anything is read.

    Raises:
        DataError: it holds something else.
        OutputPathError: it cannot be made, or written into.
    """
    there = nearest_folder(folder)
    if (folder / MANIFEST).exists():  # a cache that is complete is only read: its disk may refuse writing
        return
    check_writable(there)
    # what a killed process leaves is hidden; files of a cache say themselves what they hold
    if there == folder and any(not path.name.startswith(".") and not is_shard(path.name) for path in folder.iterdir()):
        raise DataError(f"{folder} is not empty, and holds no token cache", "give a new folder")


def begin_cache(folder: Path, plan: CachePlan, schedules: Mapping[int, ScaleSchedule]) -> Manifest:
    """The manifest of what is to be made, written unless nothing changes; resolutions that are there stay.

    Raises:
        DataError: the folder holds something else, or a cache of something else.
        OutputPathError: it cannot be made.
        OutputError: writing failed.
    """
    check_cache_folder(folder)
    sides = {resolution: schedule.sides for resolution, schedule in schedules.items()}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / MANIFEST).exists():
        manifest = Manifest(plan=plan, sides=sides)
        write_manifest(folder, manifest)
        return manifest
    made = read_manifest(folder)
    found = differences(made.plan, plan)
    found += [
        differ(f"schedule at {resolution} px", list(made.sides[resolution]), list(sides[resolution]))
        for resolution in sorted(sides)
        if made.sides.get(resolution, sides[resolution]) != sides[resolution]
    ]
    if found:
        raise DataError(
            f"{folder} holds a token cache with {'; '.join(found)}", "give a new folder, or delete that one"
        )
    if set(sides) <= set(made.sides):
        return made
    manifest = replace(made, sides={**made.sides, **sides}, is_complete=False)
    write_manifest(folder, manifest)
    return manifest
