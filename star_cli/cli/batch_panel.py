"""How far a batch is: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from star_cli.cli import console
from star_cli.cli.errors import shorten

if TYPE_CHECKING:
    from rich.progress import Progress

    from star_cli.batch.events import Event
    from star_cli.batch.plan import Job

_LINE_EVERY_S = 10.0
_BAR_EVERY_S = 0.3
_LONGEST_PROMPT = 40


class BatchPanel:
    """Counts events and shows them.

    Args:
        total: jobs of this run.
        bar: on a terminal.
        quiet: show nothing.
    """

    def __init__(self, total: int, bar: Progress | None, quiet: bool):
        self._total = total
        self._bar = bar
        self._quiet = quiet
        self._task = None if bar is None else bar.add_task("loading", total=total, note="")
        self._counts: dict[str, int] = {}
        self._began: float | None = None
        self._shown = time.monotonic()
        self._prompt = ""
        self._doing = "loading"
        self._in_work = ""

    def on_event(self, event: Event) -> None:
        """Take note; show it if the last time was long enough ago."""
        now = time.monotonic()
        if event.kind == "drawing":
            self._began, self._doing = self._began or now, "drawing"
            self._in_work = f"{event.share:.0%} of {event.images} in work" if event.images else ""
            if event.job is not None:
                self._prompt = subject_in_words(event.job)
        elif event.kind != "warning":
            self._counts[event.kind] = self._counts.get(event.kind, 0) + 1
        if self._quiet:
            return
        if self._bar is not None and self._task is not None and now - self._shown >= _BAR_EVERY_S:
            self._shown = now
            self._bar.update(self._task, description=self._doing, completed=self.settled, note=self._note(now))
        elif self._bar is None and now - self._shown >= _LINE_EVERY_S:
            self._shown = now
            console.say(f"{self.settled}/{self._total}  {self._note(now)}")

    @property
    def settled(self) -> int:
        """Jobs that need nothing more."""
        return sum(self._counts.values())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Standard output may be written to inside: the bar is not in its way, though both share a terminal."""
        if self._bar is None or not console.is_terminal():
            yield
            return
        self._bar.stop()
        yield
        self._bar.start()

    def _note(self, now: float) -> str:
        parts = []
        done = self._counts.get("done", 0)
        if self._began is not None and done and now > self._began:
            rate = done / (now - self._began)
            parts += [f"{rate:.2f} images/s", f"{clock((self._total - self.settled) / rate)} left"]
        if failed := self._counts.get("failed", 0) + self._counts.get("failed before", 0):
            parts.append(f"{failed} failed")
        return "  ".join(part for part in (*parts, self._in_work, self._prompt) if part)


@contextmanager
def batch_panel(total: int, quiet: bool) -> Iterator[BatchPanel]:
    """The panel, gone when done."""
    with console.bars(quiet) as bar:
        yield BatchPanel(total, bar, quiet)


def subject_in_words(job: Job) -> str:
    """A job's prompt, short."""
    subject = job.row.subject
    words = subject if isinstance(subject, str) else f"class {subject}"
    return console.printable(words if len(words) <= _LONGEST_PROMPT else f"{words[: _LONGEST_PROMPT - 3]}...")


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def failure_in_words(event: Event) -> str:
    """One line about a job that failed."""
    if event.job is None:
        return event.message
    return shorten(
        f"line {event.job.row.line}, {subject_in_words(event.job)!r}, seed {event.job.seed}: {event.message}"
    )
