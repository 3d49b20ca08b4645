"""Writing safetensors one tensor at a time, in several files when one would be large, and hashing on the way.

The `safetensors` package writes a file from tensors that are all in memory; here the largest one must fit, no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star_cli.checkpoints.record import FileRecord
from star_cli.errors import ModelFolderError

LARGEST_FILE = 2 * 10**9
"""Bytes of tensors in one file; more go into files of their own."""
NAMES: dict[torch.dtype, str] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}
Outline = Mapping[str, Tensor]
"""Shape and dtype of each tensor; on the meta device, for nothing of it is read."""
Read = Callable[[str], Tensor]
OnBytes = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""


def write_shards(
    folder: Path,
    stem: str,
    outline: Outline,
    source: Callable[[], Read],
    on_bytes: OnBytes | None = None,
    largest: int = LARGEST_FILE,
) -> dict[str, FileRecord]:
    """Write tensors as `STEM.safetensors`, or as `STEM-00001-of-00003.safetensors` and so on.

    Args:
        folder: where the files go.
        stem: how their names begin.
        outline: what is stored.
        source: opens the origin of the tensors, anew for each file: a memory-mapped origin is let go with it, and its
            pages count for no more than one file. Gives a function from a name to its tensor.
        on_bytes: told after each tensor.
        largest: bytes of tensors in one file.
    Returns:
        Hash and size of each file, by its name.
    Raises:
        ModelFolderError: a value is not finite in the dtype it is stored in.
    """
    plan = _plan(outline, largest)
    total, done = sum(_size(tensor) for tensor in outline.values()), 0
    records = {}
    for index, names in enumerate(plan, start=1):
        part = stem if len(plan) == 1 else f"{stem}-{index:05}-of-{len(plan):05}"
        path = folder / f"{part}.safetensors"
        read = source()

        def on_written(size: int) -> None:
            nonlocal done
            done += size
            if on_bytes is not None:
                on_bytes(done, total)

        records[path.name] = _write(path, {name: outline[name] for name in names}, read, on_written)
        del read
    return records


def _plan(outline: Outline, largest: int) -> list[list[str]]:
    """Names of each file's tensors: wide dtypes first, so that each stands aligned, then by name."""
    files: list[list[str]] = [[]]
    room = largest
    for name in sorted(outline, key=lambda name: (-outline[name].element_size(), name)):
        size = _size(outline[name])
        if files[-1] and size > room:
            files.append([])
            room = largest
        files[-1].append(name)
        room -= size
    return files


def _write(path: Path, outline: Outline, read: Read, on_written: Callable[[int], None]) -> FileRecord:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, like in outline.items():
        end = offset + _size(like)
        header[name] = {"dtype": NAMES[like.dtype], "shape": list(like.shape), "data_offsets": [offset, end]}
        offset = end
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(words).to_bytes(8, "little"), words):
            digest.update(piece)
            file.write(piece)
        for name, like in outline.items():
            tensor = read(name).detach().to("cpu", like.dtype).contiguous()
            assert tensor.shape == like.shape, f"{name}: {tuple(tensor.shape)}, planned {tuple(like.shape)}"
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ModelFolderError(f"{path.name}: {name} would hold values that are not finite in {like.dtype}")
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
            on_written(len(data))
    return FileRecord(digest.hexdigest(), path.stat().st_size)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
