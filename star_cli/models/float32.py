"""Float32 for what decides tokens, whatever surrounds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch


class _Switches:
    """Torch's switches of what float32 is computed in: of the process, not of a thread, as autocast is.

    Args:
        owners: whose `fp32_precision` it is.
    """

    def __init__(self, *owners: Any):
        self._owners = owners
        self._lock = Lock()
        self._inside = 0
        self._before: list[str] = []

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Float32 itself inside. Threads may overlap: the last one that leaves puts back what the first one found."""
        with self._lock:
            if not self._inside:
                self._before = [owner.fp32_precision for owner in self._owners]
                for owner in self._owners:
                    owner.fp32_precision = "ieee"
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    for owner, precision in zip(self._owners, self._before, strict=True):
                        owner.fp32_precision = precision


_SWITCHES = {
    # TF32, which convolutions use unless told otherwise
    "cuda": _Switches(torch.backends.cudnn.conv, torch.backends.cuda.matmul),  # type: ignore[attr-defined]  # it has
    # bfloat16 or TF32, where a program asked for them: `torch.set_float32_matmul_precision("medium")`
    "cpu": _Switches(torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul),  # type: ignore[attr-defined]
}


@contextmanager
def exact_float32(device: torch.device | str) -> Iterator[None]:
    """Float32 that is float32: no autocast, no TF32 and no bfloat16 in products and convolutions.

    A token is the nearest of thousands of codes: with 10 bits instead of 23 the cache of one machine would hold other
    tokens than the pixels give on another.
    """
    kind = torch.device(device).type
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(kind, enabled=False))
        if kind in _SWITCHES:
            stack.enter_context(_SWITCHES[kind].exact())
        yield
