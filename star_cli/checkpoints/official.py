"""Reading the authors' files: pickles, of which tensors and plain data are read and nothing is ever run.

A file is a plain state dict (VAR, the VQVAE), or a training snapshot that holds several (STAR).
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from star_cli.errors import WeightsFileError

Part = Literal["transformer", "vqvae"]

MARKS: dict[Part, str] = {"transformer": "word_embed.weight", "vqvae": "quantize.embedding.weight"}
"""A key that tells which state dict this is."""
_SNAPSHOT: dict[Part, tuple[str, str]] = {
    "transformer": ("trainer", "var_wo_ddp"),
    "vqvae": ("trainer", "vae_local"),
}
"""Where a training snapshot holds them."""
_AGAIN = "download the file again, or give the right one"


@dataclass(frozen=True)
class OfficialFile:
    """An official file that has been opened; of its tensors only names, shapes and dtypes were read."""

    path: Path
    parts: tuple[Part, ...]
    """What it holds."""
    sides: tuple[int, ...] | None
    """Of the scale schedule it was trained with, where the file says so."""

    def state(self, part: Part) -> OfficialState:
        """One of its state dicts, mapped anew: when it is dropped, so are its pages."""
        return OfficialState(self.path, _state_of(_load(self.path), part))


class OfficialState:
    """A memory-mapped state dict; a tensor's bytes are read, and checked, when it is asked for.

    Args:
        path: the file, for errors.
        tensors: by official key.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]):
        self.path = path
        self.tensors = tensors
        self._sums = _checksums(path)
        self._sound: set[int] = set()

    def read(self, key: str) -> Tensor:
        """A tensor whose bytes are those that were saved.

        Raises:
            WeightsFileError: they are not.
        """
        tensor = self.tensors[key]
        storage = tensor.untyped_storage()
        if self._sums is not None and storage.data_ptr() not in self._sound:
            found = _crc(tensor)
            known = self._sums.get(storage.nbytes(), set())
            if found not in known:
                expected = f"expected {next(iter(known)):08x}" if len(known) == 1 else "which no record of it has"
                raise WeightsFileError(
                    f"{self.path.name}: damaged at {key}: its checksum is {found:08x}, {expected}", _AGAIN
                )
            self._sound.add(storage.data_ptr())
        return tensor


def open_official(path: Path) -> OfficialFile:
    """Look into an official file, reading no tensor.

    Raises:
        WeightsFileError: missing, truncated or damaged, no such file at all, or one that asks to run code.
    """
    content = _load(path)
    parts = tuple(part for part in MARKS if _state_of(content, part))
    if not parts:
        keys = (
            ", ".join(str(key) for key in list(content)[:5]) if isinstance(content, Mapping) else type(content).__name__
        )
        raise WeightsFileError(
            f"{path.name}: holds neither a transformer nor a VQVAE of STAR or VAR; it holds {keys or 'nothing'}", _AGAIN
        )
    return OfficialFile(path, parts, _sides_of(content))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that is a plain state dict, such as a text tower's `pytorch_model.bin`.

    Raises:
        WeightsFileError: as `open_official`.
    """
    state = OfficialState(path, {key: value for key, value in _load(path).items() if isinstance(value, Tensor)})
    return {key: state.read(key) for key in state.tensors}


def _load(path: Path) -> Any:
    """What `torch.load` gives, tensors mapped into memory where the format allows; nothing that would run is read."""
    _check_archive(path)
    is_archive = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except Exception as error:  # torch and the zip reader raise whatever a damaged file leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsFileError(f"{path.name}: cannot be read: {reason}", _AGAIN) from error


def _check_archive(path: Path) -> None:
    """Say what is wrong with a file in the words of people, before torch does in its own."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise WeightsFileError(f"{path}: {what}", "give the files of the published model")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsFileError(
            f"{path.name}: is a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"
        )
    if not start.startswith(b"PK\x03\x04"):
        if start[:1] == b"\x80":  # a pickle, as torch wrote before it wrote archives
            return
        raise WeightsFileError(f"{path.name}: {size:,} bytes that are no PyTorch file", _AGAIN)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    archive.read(name)  # raises when its checksum does not fit
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        whole = "its checksum does not fit" if "CRC" in str(error) else "its end, which lists the contents, is missing"
        raise WeightsFileError(f"{path.name}: damaged or truncated after {size:,} bytes: {whole}", _AGAIN) from error


def _refused(path: Path, error: Exception) -> WeightsFileError:
    """The words for a pickle that is more than tensors and plain data."""
    try:
        wanted = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a pickle may be made to confuse whoever reads it
        wanted = []
    if not wanted:
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "invalid" in line), "")
        return WeightsFileError(f"{path.name}: its pickle cannot be read {reason}".rstrip(), _AGAIN)
    return WeightsFileError(
        f"{path.name}: asks to use {', '.join(wanted[:5])}; weights need tensors and plain data alone. "
        "It was refused, and nothing in it was run",
        "take the file from the authors' repository; if it is from there, report it",
    )


def _state_of(content: Any, part: Part) -> dict[str, Tensor]:
    """One state dict of a file; empty when it is not there."""
    for keys in ((), _SNAPSHOT[part]):
        found = content
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and MARKS[part] in found:
            return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    return {}


def _sides_of(content: Any) -> tuple[int, ...] | None:
    """`patch_nums` of a snapshot's trainer: numbers, or one text that parts them by - or _."""
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    config = trainer.get("config") if isinstance(trainer, Mapping) else None
    sides = config.get("patch_nums") if isinstance(config, Mapping) else None
    if isinstance(sides, str):
        sides = sides.replace("-", "_").split("_")
    try:
        return tuple(int(side) for side in sides) if sides is not None else None
    except (TypeError, ValueError):
        return None


def _checksums(path: Path) -> dict[int, set[int]] | None:
    """Checksums of the archive's records by their size; None for a file that has none."""
    if not zipfile.is_zipfile(path):
        return None
    found: dict[int, set[int]] = {}
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            found.setdefault(record.file_size, set()).add(record.CRC)
    return found


def _crc(tensor: Tensor) -> int:
    """Of all the bytes its storage has."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    return zlib.crc32(whole.numpy().data) if len(whole) else 0
