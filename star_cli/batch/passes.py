"""How many images go into one pass: what is asked for, or as many as pay and memory allows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FIRST, LARGEST = 4, 256
_PAYS = 1.03
"""A pass twice as large must draw so many times the images a second, or the smaller one stays."""


@dataclass
class PassSize:
    """Images of a pass. "auto" doubles while that pays and memory has room; out of memory halves it for good.

    Args:
        asked: a fixed size; None for "auto".
        has_room: may a pass be twice as large as the last?
    """

    asked: int | None = None
    has_room: Callable[[], bool] = lambda: True
    size: int = 0
    _grows: bool = False
    _best: float = 0.0
    _rates: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = self.asked or FIRST
        self._grows = self.asked is None

    def report(self, images: int, seconds: float) -> None:
        """After a pass: larger next time?"""
        if not self._grows or images < self.size or seconds <= 0:
            return
        rate = images / seconds
        if self.size not in self._rates:  # the first of a size warms up: its kernels are chosen, its memory is mapped
            self._rates[self.size] = 0.0
            return
        smaller = self._rates.get(self.size // 2, 0.0)
        self._rates[self.size] = rate
        if rate < _PAYS * smaller:
            self.size //= 2
            self._grows = False
        elif 2 * self.size > LARGEST or not self.has_room():
            self._grows = False
        else:
            self.size *= 2

    def halve(self, images: int) -> None:
        """After a pass of so many images ran out of memory."""
        self._grows = False
        self.size = max(1, min(self.size, images // 2))


class Room:
    """Does memory allow a pass twice as large? Asked after a pass; looks at what the passes so far have taken."""

    def __init__(self, device: torch.device):
        self._device = device
        self._before = _resident_bytes()

    def __call__(self) -> bool:
        """On a GPU by torch's own count, else by the growth of this process and what the system has left."""
        if self._device.type == "cuda":
            import torch

            free, _ = torch.cuda.mem_get_info(self._device)
            reserved = torch.cuda.memory_reserved(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
            return free + reserved > 2 * peak
        left = _available_bytes()
        return left is not None and left > 2 * (_resident_bytes() - self._before)


def is_out_of_memory(error: BaseException) -> bool:
    """By name where torch raises errors of its own: the CLI asks, too, and must not import torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _resident_bytes() -> int:
    """The most that this process ever had in memory."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _available_bytes() -> int | None:
    """What the system can still give; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
