"""The journal beside the images: one JSON line for each finished or failed job, written once and never changed.

Lines are appended whole and synced, so a crash costs at most the last line. A reader passes over what it cannot read
and says where it was; `folder.py` looks at the images again then.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from star_cli.batch.plan import name_key
from star_cli.batch.template import check_name
from star_cli.errors import OutputError
from star_cli.images import way_out

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What became of one job."""

    job: str
    """Its hash."""
    status: Literal["done", "failed"]
    file: str = ""
    """Of the image, inside the folder; / between folders."""
    sha256: str = ""
    """Of the whole file."""
    seconds: float = 0.0
    """That drawing and writing it took: its share of the pass; 0 for an image that was found."""
    size_bytes: int = 0
    res: int = 0
    line: int = 0
    """Of the input, when the job was drawn."""
    subject: str | int = ""
    """Prompt or class, for people; its beginning when it is long."""
    seed: int = 0
    error: str = ""
    """Why it failed."""

    def to_line(self) -> bytes:
        """One line of the journal."""
        said = {name: value for name, value in asdict(self).items() if value != ""}
        return json.dumps({"v": VERSION, **said}, ensure_ascii=True).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Record:
        """Read a line.

        Raises:
            ValueError: it is damaged, or of another version.
        """
        try:
            said = json.loads(line)
        except RecursionError as error:
            raise ValueError(str(error)) from error
        if not isinstance(said, dict) or said.pop("v", None) != VERSION:
            raise ValueError("not a line of this version")
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in said.items() if name in known}
        kinds = {"seconds": (int, float), "subject": (str, int)}
        for name, value in values.items():
            usual = int if name in ("size_bytes", "res", "line", "seed") else str
            if not isinstance(value, kinds.get(name, usual)) or isinstance(value, bool):
                raise ValueError(f"{name} is of a wrong kind")
        if values.get("status") not in ("done", "failed") or len(values.get("job", "")) != 64:
            raise ValueError("status or job is wrong")
        if values["status"] == "done" and not (values.get("file") and len(values.get("sha256", "")) == 64):
            raise ValueError("file or sha256 is missing")
        if values["status"] == "done":
            check_name(values["file"], "file")  # an OptionError is a ValueError
        return cls(**values)


class Journal:
    """All records of a folder. Whoever writes, or needs to know the latest, holds the folder's lock.

    Args:
        path: of the file; it need not be there.
    """

    def __init__(self, path: Path):
        self.path = path
        self.records: dict[str, Record] = {}
        """The last record of each job."""
        self.owners: dict[str, str] = {}
        """Job of each file that is done, by the name's key."""
        self.damaged: list[int] = []
        """Numbers of the lines that cannot be read."""
        self.new: set[str] = set()
        """Jobs whose record came after the first reading."""
        self._offset = 0
        self._lines = 0
        self._file_number: int | None = None
        self._has_been_read = False
        self._before: dict[str, Record] = {}
        """What was known when another program replaced the file: that is not new when it is read again."""

    def refresh(self) -> None:
        """Read what was added since the last time.

        Raises:
            OutputError: the file is there and cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if self._has_been_read and (state.st_ino != self._file_number or state.st_size < self._offset):
                    self._forget()  # another program repaired it
                self._file_number = state.st_ino
                if state.st_size == self._offset:
                    return
                file.seek(self._offset)
                for line in file:
                    self._take(line)
                self._offset = file.tell()
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from error
        finally:
            self._has_been_read = True

    def append(self, record: Record) -> None:
        """Add a line, and have it on the disk when this returns.

        Raises:
            OutputError: writing failed; a half-written line is taken back where that is possible.
        """
        self.refresh()
        line = record.to_line()
        try:
            with self.path.open("ab", buffering=0) as file:  # a buffer would write its rest before it truncates
                end = file.tell()
                if self._ends_open(end):
                    line = b"\n" + line
                try:
                    while line:  # the last bytes of a disk may take a part
                        line = line[file.write(line) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}", way_out(error)) from error
        self.refresh()

    def rewritten(self, found: Iterable[Record]) -> bytes:
        """The content of a whole journal: what could be read, and what was found again."""
        return b"".join(record.to_line() for record in (*self.records.values(), *found))

    def _forget(self) -> None:
        self._before |= self.records
        self.records.clear()
        self.owners.clear()
        self.damaged.clear()
        self._offset = self._lines = 0

    def _take(self, line: bytes) -> None:
        self._lines += 1
        if not line.strip():
            return
        try:
            record = Record.from_line(line)
        except ValueError:
            self.damaged.append(self._lines)
            return
        before = self.records.get(record.job)
        if before is not None and before.status == "done":
            self.owners.pop(name_key(before.file), None)
        self.records[record.job] = record
        if record.status == "done":
            self.owners[name_key(record.file)] = record.job
        if self._has_been_read and self._before.get(record.job) != record:
            self.new.add(record.job)

    def _ends_open(self, size: int) -> bool:
        """Does the file end in the middle of a line, as after a crash?"""
        if size == 0:
            return False
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) != b"\n"
