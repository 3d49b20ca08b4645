"""The folder of a batch: its journal, claims and images, and the questions a run asks of them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from filelock import FileLock

from star_cli.batch.claims import Claims
from star_cli.batch.journal import Journal, Record
from star_cli.batch.plan import Job, name_key
from star_cli.batch.records import job_of_image, record_of, record_of_image
from star_cli.batch.template import JOURNAL_FILE, numbered
from star_cli.errors import OutputError, OutputPathError
from star_cli.images import check_folder, check_writable, way_out, write_whole

HIDDEN = ".star"
"""Folder inside the batch's folder for locks and unfinished files."""
_TRIES = 5
_POLL_S = 0.005

State = Literal["kept", "failed", "todo"]
ClaimState = Literal["kept", "failed", "todo", "taken", "elsewhere"]
"""And "taken": another process has it in work; "elsewhere": another process did it just now."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job's image goes."""

    file: str
    """Inside the folder; / between folders."""
    overwrite: bool
    """The file there is the job's own: damaged, or to be drawn again."""


class BatchFolder:
    """A folder of images in which any number of processes work. Used with `with`; threads may share it.

    Args:
        path: of the folder; made when its parent is there.
    Raises:
        OutputPathError: it cannot be made or written into.
    """

    def __init__(self, path: Path):
        self.path = path
        self.journal = Journal(path / JOURNAL_FILE)
        self.messages: list[str] = []
        """What was repaired on entering, in words."""
        self._claims = Claims(path / HIDDEN)
        self._lock = FileLock(path / HIDDEN / "lock", thread_local=False)
        self._threads = threading.Lock()

    def __enter__(self) -> Self:
        self._make()
        check_writable(self.path)
        try:
            for left in reversed(range(_TRIES)):  # a process that leaves may take the hidden folder with it
                try:
                    self._register()
                    return self
                except FileNotFoundError:
                    if not left:
                        raise
        except OSError as error:
            raise OutputPathError(f"{self.path}: {error.strerror or error}") from error
        raise AssertionError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Give up all claims and unfinished files at once."""
        self._claims.stop()
        with contextlib.suppress(OSError, OutputError), self.locked():
            self._claims.leave()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other thread or process changes claims or journal inside."""
        with self._threads, self._there():
            try:
                self._lock.acquire(poll_interval=_POLL_S)
            except OSError as error:
                raise OutputError(f"cannot lock {self.path}: {error.strerror or error}") from error
            try:
                self._check_not_made_anew()
                yield
            finally:
                self._lock.release()

    # -- questions ----------------------------------------------------------------------------------------------------

    def state(self, job: Job) -> State:
        """Is the job's image here and whole ("kept"), did it fail before, or is it to be drawn? As last read."""
        record = self.journal.records.get(job.hash)
        if record is None:
            return "todo"
        if record.status == "failed":
            return "failed"
        return "kept" if self.is_whole(record) else "todo"

    def is_whole(self, record: Record) -> bool:
        """Are the bytes of a journalled image those that were written?"""
        path = self.path / record.file
        try:
            if path.stat().st_size != record.size_bytes:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256
        except OSError:
            return False

    def place(self, job: Job) -> tuple[Place, bool]:
        """Where the image goes, and whether it lies there already, journalled by nobody: a crash came between."""
        record = self.journal.records.get(job.hash)
        if record is not None and record.status == "done":
            return Place(record.file, overwrite=True), False
        count = 1
        while True:
            file = numbered(job.file, count)
            owner = self.journal.owners.get(name_key(file))
            if owner is None:
                if not os.path.lexists(self.path / file):  # a link that leads nowhere is somebody's, too
                    return Place(file, overwrite=False), False
                if job_of_image(self.path / file, job.copy) == job.hash:
                    return Place(file, overwrite=False), True
            count += 1

    # -- changes ------------------------------------------------------------------------------------------------------

    def claim(self, job: Job, again: bool = False) -> tuple[ClaimState, Place | None]:
        """Take a job under the lock, as the folder stands now.

        Args:
            job: that `state` called for drawing, or that failed and is to be tried again.
            again: draw it though it is done, unless that happened after this process began.
        Returns:
            "todo" and where the image goes; else what became of it in the meantime.
        Raises:
            OutputError: nothing can be written any more.
        """
        journal = self.journal
        journal.refresh()
        is_new = job.hash in journal.new
        state: State = "todo" if again and not is_new else self.state(job)
        if state == "kept" or (state == "failed" and is_new):
            return "elsewhere" if is_new and state == "kept" else state, None
        try:
            if not self._claims.claim(job.hash):
                return "taken", None
        except OSError as error:
            raise OutputError(f"cannot write into {self.path}: {error.strerror or error}", way_out(error)) from error
        place, is_there = self.place(job)
        if is_there and not again:
            self._finish(record_of(job, place.file, (self.path / place.file).read_bytes(), 0.0))
            return "kept", None
        return "todo", Place(place.file, overwrite=place.overwrite or is_there)

    def write(self, place: Place, data: bytes) -> str:
        """Write an image whole; under another name when its own was just taken.

        Returns:
            The file's name inside the folder.
        Raises:
            OutputPathError: this image cannot be written.
            OutputError: none can: a full disk, a folder that is gone.
        """
        count = 1
        while True:
            file = place.file if place.overwrite else numbered(place.file, count)
            count += 1
            target = self.path / file
            try:
                with self._there():
                    self._make_below(target.parent)
                    write_whole(target, data, overwrite=place.overwrite, scratch=self._scratch_for(target.parent))
                return file
            except OutputPathError:
                if place.overwrite or not os.path.lexists(target):
                    raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OutputError(f"cannot make {target.parent}: {error.strerror}", way_out(error)) from error
                raise OutputPathError(f"cannot make {target.parent}: {error.strerror or error}") from error

    def finish(self, record: Record) -> None:
        """Journal what became of a claimed job, and give the claim back.

        Raises:
            OutputError: the journal cannot be written.
        """
        with self.locked():
            self._finish(record)

    def release(self, job: Job) -> None:
        """Give back a job that was not done."""
        with contextlib.suppress(OSError, OutputError), self.locked():
            self._claims.release(job.hash)

    def _scratch_for(self, parent: Path) -> Path | None:
        """Where an unfinished file lies; beside its target when a folder inside this one is on another disk."""
        scratch = self._claims.scratch
        return scratch if parent.stat().st_dev == scratch.stat().st_dev else None

    # -- entering -----------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        check_folder(self.path)
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputPathError(f"cannot make folder {self.path}: {error.strerror or error}") from error

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        """Inside, the folder is used. It may vanish at any moment: before, then what is done inside would make it anew
        without a word; or after, then that is why it fails.

        Raises:
            OutputError: the folder is gone.
        """
        self._check_there()
        try:
            yield
        except (OSError, OutputError):
            self._check_there()
            raise

    def _check_not_made_anew(self) -> None:
        """Taking the lock makes its folder, also one that was deleted just before: then that goes again.

        Raises:
            OutputError: the folder is gone.
        """
        if not self._claims.scratch.is_dir():
            with contextlib.suppress(OSError):  # another process has begun in it
                (self.path / HIDDEN / "lock").unlink()
                (self.path / HIDDEN).rmdir()
                self.path.rmdir()
        self._check_there()

    def _make_below(self, folder: Path) -> None:
        """Make a folder and those above it, but never the batch's own, which somebody may just have deleted."""
        if folder != self.path:
            self._make_below(folder.parent)
            folder.mkdir(exist_ok=True)

    def _check_there(self) -> None:
        if not self._claims.scratch.is_dir():
            raise OutputError(f"the folder {self.path} is gone", "run the same command again")

    def _register(self) -> None:
        (self.path / HIDDEN).mkdir(exist_ok=True)
        with self._threads, self._lock.acquire(poll_interval=_POLL_S):
            self._claims.register()
            if dead := self._claims.clear_dead():
                what = "a run that was stopped" if dead == 1 else f"{dead} runs that were stopped"
                self.messages.append(f"cleaned up after {what}")
            self.journal.refresh()
            if self.journal.damaged:
                self._repair()

    def _repair(self) -> None:
        """Keep the damaged journal aside, look at the images again, and write a whole journal."""
        journal = self.journal
        where = ", ".join(map(str, journal.damaged[:5])) + (", ..." if len(journal.damaged) > 5 else "")
        lines = f"{len(journal.damaged)} line{'s' * (len(journal.damaged) > 1)} ({where})"
        aside, count = journal.path.with_suffix(".damaged.jsonl"), 1
        while aside.exists():
            count += 1
            aside = journal.path.with_suffix(f".damaged-{count}.jsonl")
        shutil.copyfile(journal.path, aside)
        found = list(self._unknown_images())
        write_whole(journal.path, journal.rewritten(found), overwrite=True, scratch=self._claims.scratch)
        self.journal = Journal(journal.path)
        self.journal.refresh()
        told = f"{lines} could not be read, {len(found)} found again in the images; kept as {aside.name}"
        self.messages.append(f"{journal.path.name}: {told}")

    def _unknown_images(self) -> Iterator[Record]:
        """Records of the pictures in the folder that no readable line tells of."""
        seen = set(self.journal.records)
        for path in sorted(self.path.rglob("*")):
            file = path.relative_to(self.path).as_posix()
            if file.startswith(f"{HIDDEN}/") or name_key(file) in self.journal.owners or not path.is_file():
                continue
            copy = 0
            while (job := job_of_image(path, copy)) in seen:
                copy += 1
            if job is not None and (record := record_of_image(job, file, path)) is not None:
                seen.add(job)
                yield record

    def _finish(self, record: Record) -> None:
        self.journal.append(record)
        self._claims.release(record.job)
