"""What a tar shard holds: which samples, and where in the file their pictures and captions stand.

A sample is what webdataset makes of a tar file: the members whose names agree up to the first dot.
"""

from __future__ import annotations

import posixpath
import tarfile
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from star_cli.data.stored import BadFile
from star_cli.data.transforms import SUFFIXES

CAPTION_KINDS = ("txt", "captions", "caption", "json")
"""Members that hold captions, by suffix; where a sample has several, the first of these counts."""

_PICTURE_KINDS = {suffix.removeprefix(".") for suffix in SUFFIXES}
_NO_CAPTION = -1
_BLOCK = tarfile.BLOCKSIZE


@dataclass
class ShardIndex:
    """Samples with a picture, in the order of their first members; columns, since there may be millions of rows."""

    keys: list[str] = field(default_factory=list)
    """Member names up to the first dot."""
    pictures: array[int] = field(default_factory=lambda: array("q"))
    """Offset and size in bytes of each sample's picture, one after the other."""
    captions: array[int] = field(default_factory=lambda: array("q"))
    """Offset and size in bytes of its captions; 0 and 0 when it has none."""
    kinds: array[int] = field(default_factory=lambda: array("b"))
    """Place in `CAPTION_KINDS`, or -1."""
    problems: list[BadFile] = field(default_factory=list)
    """Members that cannot be used, and why."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.keys)

    def picture(self, row: int) -> tuple[int, int]:
        """Offset and size of a picture."""
        return self.pictures[2 * row], self.pictures[2 * row + 1]

    def caption(self, row: int) -> tuple[str, int, int] | None:
        """Kind, offset and size of a picture's captions."""
        kind = self.kinds[row]
        if kind == _NO_CAPTION:
            return None
        return CAPTION_KINDS[kind], self.captions[2 * row], self.captions[2 * row + 1]


@dataclass
class _Sample:
    picture: tuple[int, int] | None = None
    caption: tuple[int, int] = (0, 0)
    kind: int = _NO_CAPTION
    members: list[str] = field(default_factory=list)


def index_shard(path: Path, name: str) -> ShardIndex:
    """Read a tar file's headers; no member is read.

    Of a damaged or cut-off file the members before the damage count.

    Args:
        path: the tar file, not compressed.
        name: what to call it in `problems`.
    Raises:
        OSError: the file cannot be read.
    """
    samples: dict[str, _Sample] = {}
    index = ShardIndex()
    length = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                # else it keeps every member, many times what is needed of it
                archive.members.clear()  # type: ignore[attr-defined]  # unknown to typeshed
                if member.isfile():
                    is_whole = member.offset_data + member.size <= length
                    _add(samples, member, index.problems, name, is_whole)
            _check_end(archive, path, name, index.problems)
    except tarfile.TarError as error:
        # a member that is cut off has already been named
        if not (index.problems and index.problems[-1].reason == _CUT_OFF):
            index.problems.append(BadFile(name, f"tar file: {error}"))
    for key, sample in samples.items():
        _append(index, key, sample, name)
    return index


_CUT_OFF = "cut off: the tar file ends before it does"


def _add(
    samples: dict[str, _Sample], member: tarfile.TarInfo, problems: list[BadFile], shard: str, is_whole: bool
) -> None:
    folder, _, base = member.name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem:  # hidden files, the forks that macOS adds among them
        return
    kind = suffix.lower()
    if kind.rpartition(".")[2] not in (*_PICTURE_KINDS, *CAPTION_KINDS):
        return
    if not is_whole:
        problems.append(BadFile(f"{shard}/{member.name}", _CUT_OFF))
        return
    sample = samples.setdefault(posixpath.join(folder, stem), _Sample())
    if kind in sample.members:
        problems.append(BadFile(f"{shard}/{member.name}", "comes twice: the first one is used"))
        return
    sample.members.append(kind)
    where = (member.offset_data, member.size)
    if kind in _PICTURE_KINDS:
        sample.picture = sample.picture or where
    elif kind in CAPTION_KINDS and (sample.kind == _NO_CAPTION or CAPTION_KINDS.index(kind) < sample.kind):
        sample.caption, sample.kind = where, CAPTION_KINDS.index(kind)


def _check_end(archive: tarfile.TarFile, path: Path, name: str, problems: list[BadFile]) -> None:
    """The reader takes a damaged header for the end: look whether it is the mark of the end, or that of the file."""
    with path.open("rb") as file:
        file.seek(archive.offset)
        block = file.read(_BLOCK)
    if block.strip(b"\0"):
        problems.append(BadFile(name, f"tar file: damaged header at byte {archive.offset:,}; what follows is not read"))


def _append(index: ShardIndex, key: str, sample: _Sample, shard: str) -> None:
    if sample.picture is None:
        index.problems.append(BadFile(f"{shard}/{key}", f"no picture among its members {', '.join(sample.members)}"))
        return
    index.keys.append(key)
    index.pictures.extend(sample.picture)
    index.captions.extend(sample.caption)
    index.kinds.append(sample.kind)
