"""What a model folder knows about each of its files, and the check that the file is still that."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from star_cli.errors import ModelFolderError

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
