"""Small sets of real files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """A smooth picture that no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(path: Path, data: bytes | str = b"") -> Path:
    """Write a file, and the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def make_folder(root: Path, count: int, captions: bool = True) -> Path:
    """`count` pictures 00.png, 01.png, ..., each with a text file."""
    for index in range(count):
        put(root / f"{index:02d}.png", encoded(noise(40 + index, 32, index)))
        if captions:
            put(root / f"{index:02d}.txt", f"picture {index}\n")
    return root


def make_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(first: int, count: int) -> list[tuple[str, bytes]]:
    """Members of the same pictures that `make_folder` writes."""
    members = []
    for index in range(first, first + count):
        members.append((f"{index:02d}.png", encoded(noise(40 + index, 32, index))))
        members.append((f"{index:02d}.txt", f"picture {index}\n".encode()))
    return members


def metadata(*records: Mapping[str, Any]) -> str:
    """Lines of a metadata.jsonl."""
    return "".join(json.dumps(record) + "\n" for record in records)
