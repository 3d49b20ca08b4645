"""Tar shards as webdataset writes them, read in any order: headers once, then each member from where it stands."""

from __future__ import annotations

import io
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from star_cli.data.caption_files import captions_in_record, captions_in_text, record_of
from star_cli.data.shard_files import PIPE, ShardFile, find_shards, spool
from star_cli.data.shard_index import ShardIndex, index_shard
from star_cli.data.stored import StoredImages
from star_cli.errors import BadImageError, DataError

OnShard = Callable[[int, int], None]
"""Told the shards indexed so far and their total; 0 while a pipe does not know it."""

_OPEN_AT_ONCE = 64


class ShardImages(StoredImages):
    """The samples of tar shards, shard after shard.

    A sample's captions are those of its member `.txt` (one a line), else `.captions` or `.caption` (likewise), else
    `.json` (a field of a JSON object).

    Args:
        where: local tar files, `{000..010}`, `{a,b}` and wildcards allowed; or `pipe:COMMAND`.
        caption_column: the field of `.json` members that holds captions; None: see `CAPTION_FIELDS`.
        spool_folder: keeps what commands write, so that they run once for all runs; None: once for this process.
        on_shard: called after each shard.
    Raises:
        DataError: no such file, a command that fails, or not a single sample.
    """

    def __init__(
        self,
        where: str,
        caption_column: str | None = None,
        spool_folder: Path | None = None,
        on_shard: OnShard | None = None,
    ):
        self.caption_column = caption_column
        self._shards: list[ShardFile] = []
        self._indices: list[ShardIndex] = []
        is_pipe = where.startswith(PIPE)
        files: Iterable[ShardFile] = spool(where, spool_folder) if is_pipe else find_shards(where)
        total = 0 if is_pipe else len(files)  # type: ignore[arg-type]  # a list
        for done, shard in enumerate(files, start=1):
            self._add(shard)
            if on_shard is not None:
                on_shard(done, total)
        self._ends = list(accumulate(map(len, self._indices)))
        self.problems = tuple(problem for index in self._indices for problem in index.problems)
        if not len(self):
            raise DataError(f"{where}: no picture in these tar files{self._first_problem()}", _HINT)
        self._files = _OpenFiles()

    def __getstate__(self) -> dict[str, Any]:
        """All but the open files: a worker process opens its own."""
        return {**self.__dict__, "_files": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Without open files."""
        self.__dict__.update(state)
        self._files = _OpenFiles()

    def __len__(self) -> int:
        """Number of samples with a picture."""
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        """Shard and member, up to the member's first dot."""
        shard, row = self._find(index)
        return f"{self._shards[shard].name}/{self._indices[shard].keys[row]}"

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a sample.

        Raises:
            BadImageError: the member that holds them cannot be read.
        """
        shard, row = self._find(index)
        member = self._indices[shard].caption(row)
        if member is None:
            return ()
        kind, offset, size = member
        data = self._read(index, shard, offset, size)
        try:
            if kind == "json":
                return captions_in_record(record_of(data), self.caption_column)
            return captions_in_text(data)
        except ValueError as error:
            raise BadImageError(f"{self.name(index)}: its captions in .{kind}: {error}") from error

    def _open(self, index: int) -> BinaryIO:
        shard, row = self._find(index)
        return io.BytesIO(self._read(index, shard, *self._indices[shard].picture(row)))

    def _identity(self, index: int) -> tuple[object, ...]:
        shard, row = self._find(index)
        told = self._indices[shard]
        member = told.caption(row)
        captions = b""
        if member is not None:
            with suppress(BadImageError):
                captions = self._read(index, shard, *member[1:])
        identity = os.fsencode(told.keys[row]), told.picture(row)[1], captions
        # of a record only one field counts; without a named one it follows from the record
        is_chosen = member is not None and member[0] == "json" and self.caption_column is not None
        return (*identity, self.caption_column) if is_chosen else identity

    def _add(self, shard: ShardFile) -> None:
        try:
            self._indices.append(index_shard(shard.path, shard.name))
        except OSError as error:
            raise DataError(f"{shard.name}: {error.strerror or error}") from error
        self._shards.append(shard)

    def _find(self, index: int) -> tuple[int, int]:
        """Which shard, and which row of it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def _read(self, index: int, shard: int, offset: int, size: int) -> bytes:
        try:
            data = self._files.read(self._shards[shard].path, offset, size)
        except OSError as error:
            raise BadImageError(f"{self.name(index)}: {error.strerror or error}") from error
        if len(data) < size:
            raise BadImageError(f"{self.name(index)}: cut off: the tar file is shorter than it was when it was indexed")
        return data

    def _first_problem(self) -> str:
        problems = [problem for index in self._indices for problem in index.problems]
        return "".join(f"; {problem.name}: {problem.reason}" for problem in problems[:1])


_HINT = "a sample is members like 0001.jpg and 0001.txt"


class _OpenFiles(threading.local):
    """File handles of one thread: another thread, or a process forked off, would move their position."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.handles: OrderedDict[Path, _Handle] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Bytes of a file; fewer where it ends. Keeps the files read last open.

        Raises:
            OSError: it cannot be read.
        """
        if self.process != os.getpid():
            self.process, self.handles = os.getpid(), OrderedDict()
        if path not in self.handles:
            self.handles[path] = _Handle(path)
            if len(self.handles) > _OPEN_AT_ONCE:
                self.handles.popitem(last=False)
        self.handles.move_to_end(path)
        return self.handles[path].read(offset, size)


class _Handle:
    """One open file; closes when nothing refers to it any more."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset`; a read may give less than it was asked for."""
        os.lseek(self.number, offset, os.SEEK_SET)
        parts = []
        while size > 0 and (part := os.read(self.number, size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.number)
