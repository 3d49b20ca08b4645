"""What a batch reports while it works, one thing after the other in the order of the input, and what it was in all."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from star_cli.batch.journal import Record
from star_cli.batch.plan import Job

_MOST_FAILURES = 1000

Kind = Literal["done", "kept", "failed", "failed before", "elsewhere", "drawing", "warning"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something a watcher may want to know."""

    kind: Kind
    """Of "done": drawn and written; "kept": was here and whole; "failed before": in an earlier run, not tried again;
    "elsewhere": another process did it; "drawing": a pass begins, or goes on; "warning": words not read, or unknown."""
    job: Job | None = None
    path: Path | None = None
    record: Record | None = None
    message: str = ""
    share: float = 0.0
    """Of the pass in work that is done, 0..1."""
    images: int = 0
    """In the pass in work."""


OnEvent = Callable[[Event], None]


@dataclass
class Summary:
    """How a batch ended."""

    jobs: int
    """Of this shard."""
    done: int = 0
    """Drawn by this run."""
    kept: int = 0
    """Here already, and whole."""
    elsewhere: int = 0
    """Drawn by other processes in the meantime."""
    failed: int = 0
    """In this run, or before and not tried again."""
    new_failures: int = 0
    """In this run alone."""
    failures: list[Event] = field(default_factory=list)
    """The first of them."""
    is_stopped: bool = False
    """Asked to stop before all was done."""
    gave_up: bool = False
    """Too many failures."""
    seconds: float = 0.0

    @property
    def missing(self) -> int:
        """Neither here nor failed."""
        return self.jobs - self.done - self.kept - self.elsewhere - self.failed

    def count(self, event: Event) -> None:
        """Take note of an event."""
        if event.kind == "done":
            self.done += 1
        elif event.kind == "kept":
            self.kept += 1
        elif event.kind == "elsewhere":
            self.elsewhere += 1
        elif event.kind in ("failed", "failed before"):
            self.failed += 1
            self.new_failures += event.kind == "failed"
            if len(self.failures) < _MOST_FAILURES:
                self.failures.append(event)


@dataclass
class InOrder:
    """Brings what finishes in any order into the order of the input. Threads give, one thread takes."""

    _ready: list[tuple[int, int, Event | None]] = field(default_factory=list)
    _next: int = 0
    _given: int = 0
    _expected: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self) -> int:
        """The number of the next thing."""
        with self._lock:
            self._expected += 1
            return self._expected - 1

    def give(self, number: int, event: Event | None) -> None:
        """The thing of this number is known; None when there is nothing to tell of it."""
        with self._lock:
            heapq.heappush(self._ready, (number, self._given, event))
            self._given += 1

    def take(self) -> list[Event]:
        """All events whose turn has come."""
        taken: list[Event] = []
        with self._lock:
            while self._ready and self._ready[0][0] <= self._next:
                number, _, event = heapq.heappop(self._ready)
                self._next = max(self._next, number + 1)
                if event is not None:
                    taken.append(event)
        return taken

    def take_all(self) -> list[Event]:
        """All events there are, when no more will come."""
        with self._lock:
            taken = [event for _, _, event in sorted(self._ready, key=lambda one: one[:2]) if event is not None]
            self._ready.clear()
        return taken
