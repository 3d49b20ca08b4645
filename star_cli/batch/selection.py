"""Which jobs are next: what is not done yet, claimed, and gathered into passes of one shape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from star_cli.batch.events import Event, InOrder
from star_cli.batch.folder import BatchFolder
from star_cli.batch.plan import Job, Plan, Setting
from star_cli.batch.writers import Todo
from star_cli.errors import OptionError

_WINDOW = 8
"""Passes that may be gathered at once: jobs of rare shapes wait so long for their like."""
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How a batch is done; nothing here changes an image.

    Raises:
        OptionError: a number out of range.
    """

    batch_size: int | None = None
    """Images of a pass; None for as many as pay and memory allows."""
    redo: bool = False
    """Draw again what is done."""
    retry_failed: bool = False
    """Try again what failed in an earlier run."""
    max_failures: int | None = None
    """Stop after so many failures; None for never."""
    shard: tuple[int, int] = (1, 1)
    """(i, n): of the jobs, those whose place in the input is i modulo n."""
    writers: int = 2
    """Threads that encode and write."""

    def __post_init__(self) -> None:
        for name, value in (("batch-size", self.batch_size), ("max-failures", self.max_failures)):
            if value is not None and value < 1:
                raise OptionError(f"--{name} must be a whole number of at least 1, not {value}")
        part, parts = self.shard
        if not 1 <= part <= parts:
            raise OptionError(f"--shard must be I/N with I from 1 to N, not {part}/{parts}", "write it like 2/8")

    def gives_up(self, failures: int) -> bool:
        """Are these too many? Those of earlier runs do not count."""
        return self.max_failures is not None and failures >= self.max_failures

    def has(self, job: Job) -> bool:
        """Is the job one of this shard?"""
        part, parts = self.shard
        return (job.index - 1) % parts == part - 1

    def count(self, plan: Plan) -> int:
        """Jobs of this shard."""
        part, parts = self.shard
        return len(range(part - 1, len(plan), parts))


@dataclass
class Selection:
    """Goes through a plan once, then through what other processes had claimed, until all of it is done somewhere.

    Args:
        plan: all jobs.
        folder: of the batch, entered.
        policy: what to take.
        order: told of jobs that need no drawing.
        size: of the next pass.
        stopped: set when no more is wanted.
    """

    plan: Plan
    folder: BatchFolder
    policy: Policy
    order: InOrder
    size: Callable[[Setting], int]
    stopped: threading.Event
    _elsewhere: list[Job] = field(default_factory=list)

    def passes(self) -> Iterator[list[Todo]]:
        """Claimed jobs of one shape at a time."""
        yield from self._gather(self._open_jobs())
        while self._elsewhere and not self.stopped.is_set():
            waiting, self._elsewhere = self._elsewhere, []
            before = len(waiting)
            yield from self._gather((job, self.order.expect()) for job in waiting)
            if len(self._elsewhere) == before:
                time.sleep(_POLL_S)

    def _open_jobs(self) -> Iterator[tuple[Job, int]]:
        """Jobs that are not done as far as is known, with their numbers in the order of events."""
        for job in self.plan.jobs():
            if self.stopped.is_set():
                return
            if not self.policy.has(job):
                continue
            number = self.order.expect()
            state = "todo" if self.policy.redo else self.folder.state(job)
            if state == "todo" or (state == "failed" and self.policy.retry_failed):
                yield job, number
            else:
                is_new = job.hash in self.folder.journal.new
                self._tell("elsewhere" if state == "kept" and is_new else state, job, number)

    def _gather(self, jobs: Iterable[tuple[Job, int]]) -> Iterator[list[Todo]]:
        """Passes of one shape each; a rare shape is drawn when the window is full, or nothing else is left."""
        groups: dict[Setting, list[tuple[Job, int]]] = {}
        for job, number in jobs:
            setting = job.row.setting
            group = groups.setdefault(setting, [])
            group.append((job, number))
            if len(group) >= self.size(setting):
                yield from self._claimed(groups.pop(setting))
            elif sum(map(len, groups.values())) >= _WINDOW * self.size(setting):
                oldest = next(iter(groups))  # the group that was opened first
                yield from self._claimed(groups.pop(oldest))
            if self.stopped.is_set():
                return
        for group in groups.values():
            yield from self._claimed(group)

    def _claimed(self, group: list[tuple[Job, int]]) -> Iterator[list[Todo]]:
        """Those of a group that nobody else has or has done."""
        todo = []
        if self.stopped.is_set():
            return
        with self.folder.locked():
            for job, number in group:
                state, place = self.folder.claim(job, again=self.policy.redo)
                if place is not None:
                    todo.append(Todo(job, place, number))
                elif state == "taken":
                    self._elsewhere.append(job)
                    self.order.give(number, None)
                else:
                    self._tell(state, job, number)
        if todo:
            yield todo

    def _tell(self, state: str, job: Job, number: int) -> None:
        record = self.folder.journal.records[job.hash]
        path = self.folder.path / record.file if record.status == "done" else None
        if record.status == "failed":
            self.order.give(number, Event("failed before", job, record=record, message=record.error))
        elif state == "elsewhere":
            self.order.give(number, Event("elsewhere", job, path, record))
        else:
            self.order.give(number, Event("kept", job, path, record))
