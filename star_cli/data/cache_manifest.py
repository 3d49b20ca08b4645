"""What a token cache says of itself: from what and with what it was made, which files hold it, what was left out.

A cache is a folder: `cache.json`; `tokens-RESOLUTION-NUMBER.safetensors`, each for so many pictures at one resolution;
`captions-NUMBER.safetensors`, each for the captions of so many pictures.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from star_cli.checkpoints.record import FileRecord
from star_cli.data.source import Crop
from star_cli.errors import DataError, OptionError
from star_cli.images import write_whole
from star_cli.models.config import Config

FORMAT, FORMAT_VERSION = "star-cli token cache", 1
MANIFEST = "cache.json"
EMPTY_CAPTION = "captions-empty.safetensors"
"""Features of the empty caption, which stands in for those that training drops."""
TOLD = "star-cli"
"""Key of what a shard says beside its tensors, as JSON: one key, for safetensors writes several in any order."""

FeatureDtype = Literal["none", "float32", "float16"]
Sides = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CachePlan(Config):
    """What decides the content of every file, the resolutions aside."""

    source: str
    """Fingerprint of the pictures and captions."""
    pictures: int
    """How many there are, unreadable ones included."""
    crop: Crop
    """Where the square is taken from a picture."""
    flips: bool = False
    """Whether mirrored pictures are in it, too; so far never: captions say what is left and right."""
    vqvae: str
    """Hash of encoder and quantiser."""
    codes: int
    """V, size of its codebook: every token is below it."""
    text_encoder: str | None
    """Hash of the text encoder; None where no features are kept."""
    text_width: int
    """D, width of the features."""
    text_tokens: int
    """T, tokens of every encoding."""
    features: FeatureDtype
    """How text features are stored, if at all."""
    pictures_per_shard: int
    """Pictures whose tokens, or captions, are in one file."""

    def __post_init__(self) -> None:
        self._check_choices()
        if self.pictures < 1 or self.pictures_per_shard < 1:
            raise OptionError("a token cache needs at least one picture, and one in each shard")

    @property
    def shards(self) -> int:
        """Number of files for each resolution, and of files of captions."""
        return -(-self.pictures // self.pictures_per_shard)

    def members(self, shard: int) -> range:
        """The pictures of one shard."""
        first = shard * self.pictures_per_shard
        return range(first, min(first + self.pictures_per_shard, self.pictures))

    def token_identity(self, resolution: int, sides: Sides) -> str:
        """Written into every shard of tokens: a shard with another one is not of this cache."""
        return _digest(self.source, self.pictures, self.crop, self.flips, self.vqvae, resolution, sides, self._cut)

    @property
    def caption_identity(self) -> str:
        """Written into every shard of captions."""
        text = (self.text_encoder, self.features)
        return _digest(self.source, self.pictures, *(text if self.text_encoder else ()), self._cut)

    @property
    def _cut(self) -> int:
        return self.pictures_per_shard


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be read."""

    index: int
    """Its place in the source."""
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`cache.json`."""

    plan: CachePlan
    sides: Mapping[int, Sides]
    """Sides of the token maps at each resolution."""
    skipped: Mapping[int, tuple[Skipped, ...]] = field(default_factory=dict)
    """Pictures without tokens, by resolution, in the source's order."""
    captions: int = 0
    """Number of captions."""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """Hash and size of every shard."""
    is_complete: bool = False
    """Whether every shard is there; an unfinished cache is not opened."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "is_complete": self.is_complete,
            **self.plan.to_dict(),
            "resolutions": {str(resolution): self._described(resolution) for resolution in sorted(self.sides)},
            "captions": self.captions,
            "files": {name: asdict(record) for name, record in sorted(self.files.items())},
        }

    def _described(self, resolution: int) -> dict[str, Any]:
        sides, skipped = self.sides[resolution], self.skipped.get(resolution, ())
        return {
            "sides": list(sides),
            "tokens": sum(side * side for side in sides),
            "pictures": self.plan.pictures - len(skipped),
            "skipped": [asdict(one) for one in skipped],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises KeyError, TypeError or OptionError where it is none."""
        rest = dict(values)
        told = {name: rest.pop(name) for name in ("format", "format_version")}
        if told != {"format": FORMAT, "format_version": FORMAT_VERSION}:
            raise OptionError(f"format {told['format']!r} {told['format_version']}, expected {FORMAT!r} 1")
        resolutions = {int(resolution): entry for resolution, entry in rest.pop("resolutions").items()}
        files = {name: FileRecord.from_dict(name, record) for name, record in rest.pop("files").items()}
        is_complete, captions = rest.pop("is_complete"), rest.pop("captions")
        return cls(
            plan=CachePlan.from_dict(rest),
            sides={resolution: tuple(entry["sides"]) for resolution, entry in resolutions.items()},
            skipped={
                resolution: tuple(Skipped(**one) for one in entry["skipped"])
                for resolution, entry in resolutions.items()
            },
            captions=captions,
            files=files,
            is_complete=is_complete,
        )


def token_shard(resolution: int, shard: int) -> str:
    """Name of a file of tokens."""
    return f"tokens-{resolution}-{shard:05}.safetensors"


def caption_shard(shard: int) -> str:
    """Name of a file of captions."""
    return f"captions-{shard:05}.safetensors"


def is_shard(name: str) -> bool:
    """Is a file of this name one of a cache's?"""
    return re.fullmatch(r"(tokens-\d+-\d{5,}|captions-(\d{5,}|empty))\.safetensors", name) is not None


def read_manifest(folder: Path) -> Manifest:
    """Read and check `cache.json`.

    Raises:
        DataError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    try:
        return Manifest.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no token cache", "make one with `star data tokens`") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged, or of another version: {error}", "delete it and run `star data tokens` again"
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `cache.json`, whole or not at all.

    Raises:
        OutputError: writing failed.
    """
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
    write_whole(folder / MANIFEST, (text + "\n").encode("utf-8", "backslashreplace"), overwrite=True)


def differences(made: CachePlan, asked: CachePlan) -> list[str]:
    """What tells a cache that is there from the one that is asked for, in words; none when they are the same."""
    words = {
        "source": "source",
        "pictures": "number of pictures",
        "crop": "crop",
        "vqvae": "VQVAE",
        "text_encoder": "text encoder",
        "features": "features",
        "pictures_per_shard": "pictures in a shard",
    }
    return [
        differ(what, getattr(made, name), getattr(asked, name))
        for name, what in words.items()
        if getattr(made, name) != getattr(asked, name)
    ]


def differ(what: str, made: object, asked: object) -> str:
    """One difference in words; hashes are shortened."""
    return f"another {what} (it was made with {_short(made)}, this is {_short(asked)})"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    is_hash = len(text) == 64 and all(one in "0123456789abcdef" for one in text)
    return f"{text[:12]}..." if is_hash else text


def _digest(*values: object) -> str:
    return hashlib.sha256(repr((FORMAT_VERSION, *values)).encode("utf-8", "backslashreplace")).hexdigest()
