"""How many images go into one pass: what is asked for, or as many as pay and memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from star_cli.memory import available_bytes, peak_bytes

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
        self._before = peak_bytes()

    def __call__(self) -> bool:
        """On a GPU by torch's own count, else by the growth of this process and what the system has left."""
        if self._device.type == "cuda":
            import torch

            free, _ = torch.cuda.mem_get_info(self._device)
            reserved = torch.cuda.memory_reserved(self._device)
            peak = torch.cuda.max_memory_allocated(self._device)
            return free + reserved > 2 * peak
        left = available_bytes()
        return left is not None and left > 2 * (peak_bytes() - self._before)
