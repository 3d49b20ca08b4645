"""What a training shows on a terminal: a bar for each stage, and the figures of the one at work."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from star_cli.cli import console

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from star_cli.training.loop import Progress
    from star_cli.training.throughput import Figures

_REDRAW_S = 0.2
_FIRST = ("loss", "rate", "norm", "skipped")


@contextmanager
def training_panel(quiet: bool = False) -> Iterator[TrainingPanel]:
    """A panel on standard error, gone when done; it stays silent when quiet, or when nobody watches."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield TrainingPanel(None, None)
        return
    from rich.console import Console
    from rich.live import Live

    bars = console.new_bars()
    # Standard output stays what it is: rich would lead it through standard error.
    with Live(bars, console=Console(stderr=True), transient=True, redirect_stdout=False, refresh_per_second=5) as live:
        yield TrainingPanel(bars, live)


class TrainingPanel:
    """Where a training tells how far it is, and what it met on the way."""

    def __init__(self, bars: Bars | None, live: Live | None):
        self._bars, self._live = bars, live
        self._tasks: dict[str, TaskID] = {}
        self._shown_at = 0.0

    def on_progress(self, progress: Progress) -> None:
        """After a step of a stage."""
        self._move(progress.stage, progress.step, progress.steps, f"ETA {_time(progress.figures.eta_s)}")
        now = time.monotonic()
        if self._live is not None and (now - self._shown_at > _REDRAW_S or progress.step == progress.steps):
            self._shown_at = now
            self._live.update(self._panel(progress))

    def on_cache(self, name: str, done: int, total: int) -> None:
        """While a token cache is made."""
        self._move(name, done, total, "")

    def on_note(self, note: str) -> None:
        """What the user should know though the work goes on."""
        console.say(f"note: {note}")

    def _move(self, name: str, done: int, total: int, note: str) -> None:
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, note=note)
        self._bars.update(self._tasks[name], completed=done, total=total, note=note)

    def _panel(self, progress: Progress) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        lines = (_losses(progress.metrics), _speed(progress.figures), _details(progress.metrics))
        assert self._bars is not None
        return Group(self._bars, Padding(Text("\n".join(line for line in lines if line)), (0, 2)))


def _losses(metrics: Mapping[str, float]) -> str:
    return "   ".join(f"{name} {metrics[name]:.3g}" for name in _FIRST if name in metrics)


def _details(metrics: Mapping[str, float]) -> str:
    return "   ".join(f"{name} {value:.3g}" for name, value in metrics.items() if name not in _FIRST)


def _speed(figures: Figures) -> str:
    parts = [f"{figures.images_per_s:.3g} images/s"]
    if figures.tokens_per_s:
        parts.append(f"{figures.tokens_per_s:,.0f} tokens/s")
    if figures.mfu is not None:
        parts.append(f"MFU {figures.mfu:.0%}")
    parts += [f"memory {figures.memory_bytes / 1e9:.2f} GB", f"overhead {figures.overhead:.1%}"]
    return "   ".join(parts)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
