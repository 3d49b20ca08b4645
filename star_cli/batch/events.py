"""What a batch reports while it works, one thing after the other in the order of the input."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from star_cli.batch.journal import Record
from star_cli.batch.plan import Job

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
