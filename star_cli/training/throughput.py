"""How fast a run is: images and tokens a second, share of the machine's peak, time left, and the loop's own share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from star_cli.memory import peak_bytes

WINDOW = 20
"""Steps that the figures are a mean of."""
# Dense bfloat16 and float16 peaks of tensor cores, operations a second, from NVIDIA's data sheets.
PEAKS = {"H200": 989.4e12, "H100 80GB HBM3": 989.4e12, "H100 PCIe": 756e12, "A100": 312e12, "B200": 2250e12}


@dataclass(frozen=True)
class Figures:
    """Speed over the last steps."""

    images_per_s: float = 0.0
    """Rows of all processes together."""
    tokens_per_s: float = 0.0
    """Tokens of the loss, of all processes together; 0 where the stage counts none."""
    mfu: float | None = None
    """Useful operations of forward and backward, over what the device could do in that time; None: not known."""
    overhead: float = 0.0
    """Share of the time outside forward, backward and optimiser."""
    eta_s: float = 0.0
    """Time to the last step at this speed."""
    memory_bytes: int = 0
    """Largest memory use so far: of the GPU, or of this process on a CPU."""


@dataclass(frozen=True)
class _Step:
    seconds: float
    work: float
    images: float
    tokens: float
    flops: float


class Meter:
    """A clock over the steps of a run."""

    def __init__(self, device: torch.device, precision: str):
        self.device, self.precision = device, precision
        self._steps: deque[_Step] = deque(maxlen=WINDOW)
        self._work = 0.0
        self._began = self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since this clock was made."""
        return self._last - self._began

    @contextmanager
    def working(self) -> Iterator[None]:
        """Forward, backward and optimiser run in here."""
        began = time.perf_counter()
        yield
        self._work += time.perf_counter() - began

    def step(self, images: float, tokens: float, flops: float | None) -> None:
        """A step is over.

        Args:
            images: rows of all processes.
            tokens: of all processes.
            flops: of this process.
        """
        now = time.perf_counter()
        self._steps.append(_Step(now - self._last, self._work, images, tokens, flops or 0.0))
        self._last, self._work = now, 0.0

    def figures(self, steps_left: int) -> Figures:
        """Means over the last steps."""
        seconds = sum(step.seconds for step in self._steps)
        if not seconds:
            return Figures()
        flops = sum(step.flops for step in self._steps)
        return Figures(
            images_per_s=sum(step.images for step in self._steps) / seconds,
            tokens_per_s=sum(step.tokens for step in self._steps) / seconds,
            mfu=flops / seconds / peak_flops(self.device, self.precision) if flops else None,
            overhead=1 - sum(step.work for step in self._steps) / seconds,
            eta_s=seconds / len(self._steps) * steps_left,
            memory_bytes=used_memory(self.device),
        )


@lru_cache
def peak_flops(device: torch.device, precision: str) -> float:
    """Operations a second that the device could do: as its maker says, else as measured on one large product."""
    if device.type == "cuda" and precision != "float32":
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAKS.items():
            if known in name:
                return peak
    return _measure_peak(device, getattr(torch, precision))


def _measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    side = 1024 if device.type == "cpu" else 8192
    matrix = torch.ones(side, side, dtype=dtype, device=device)  # random numbers would move the run's generator
    best = float("inf")
    for _ in range(4):
        _finish(device)
        began = time.perf_counter()
        torch.mm(matrix, matrix)  # only the time is of interest
        _finish(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def used_memory(device: torch.device) -> int:
    """Largest memory use so far, bytes; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()
