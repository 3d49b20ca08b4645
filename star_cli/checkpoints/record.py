"""What a model folder knows about each of its files, and the check that the file is still that."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_cli.errors import ModelFolderError, OptionError

_COPY_AGAIN = "copy or download the model folder again"


@dataclass(frozen=True)
class FileRecord:
    """What `config.json` knows about a file."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a file once, piece by piece."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return cls(digest.hexdigest(), path.stat().st_size)

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> FileRecord:
        """What is stored of the file of this name.

        Raises:
            OptionError: it is no hash and size.
        """
        record = cls(**values)
        if not isinstance(record.sha256, str) or type(record.size_bytes) is not int or record.size_bytes < 0:
            raise OptionError(f"files: {name}: sha256 must be text and size_bytes a number, not {dict(values)}")
        return record

    def check_size(self, path: Path) -> None:
        """Cheap: is the file there, and as long as it should be?

        Raises:
            ModelFolderError: it is not.
        """
        if not path.is_file():
            raise ModelFolderError(f"{path.name}: missing in {path.parent}", _COPY_AGAIN)
        if (found := path.stat().st_size) != self.size_bytes:
            raise ModelFolderError(f"{path.name}: {found:,} bytes, expected {self.size_bytes:,}", _COPY_AGAIN)

    def check(self, path: Path) -> None:
        """Thorough: is every byte what it was when the folder was written?

        Raises:
            ModelFolderError: it is not.
        """
        self.check_size(path)
        if (found := FileRecord.of(path).sha256) != self.sha256:
            raise ModelFolderError(
                f"{path.name}: hash is {found[:12]}..., expected {self.sha256[:12]}...",
                f"the file is damaged or was changed: {_COPY_AGAIN}",
            )


def shard_names(stem: str, names: Iterable[str]) -> list[str]:
    """Which of these files hold the tensors of `stem`, in order.

    Raises:
        OptionError: none, or some of several are missing.
    """
    names = set(names)
    if f"{stem}.safetensors" in names:
        return [f"{stem}.safetensors"]
    pattern = re.compile(rf"{re.escape(stem)}-(\d+)-of-(\d+)\.safetensors")
    found = {name: match for name in sorted(names) if (match := pattern.fullmatch(name))}
    counts = {int(match[2]) for match in found.values()}
    if not found:
        raise OptionError(f"files does not list {stem}.safetensors")
    if len(counts) != 1 or [int(match[1]) for match in found.values()] != list(range(1, counts.pop() + 1)):
        raise OptionError(f"files does not list every part of {stem}: {', '.join(found)}")
    return list(found)
