"""Results on their way from a GPU to the CPU, which meanwhile queues the next ones' work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


class Copies:
    """Tensors that are being copied to the CPU; from the CPU itself, they are there at once.

    Args:
        tensors: all on one device; nobody may write to them before `wait`.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._arrived: torch.cuda.Event | None = None
        if tensors[0].device.type == "cuda":
            # into memory that the system cannot move: whoever copies into other memory waits for the GPU
            self._held = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))
        else:
            self._held = [tensor.cpu() for tensor in tensors]

    @property
    def is_on_its_way(self) -> bool:
        """Whether `wait` may have to wait."""
        return self._arrived is not None

    def wait(self) -> list[Tensor]:
        """The tensors, on the CPU."""
        if self._arrived is None:
            return self._held
        self._arrived.synchronize()
        return [held.clone() for held in self._held]  # such memory is scarce: it goes to the next copies


def one_behind(copies: Iterable[Copies]) -> Iterator[list[Tensor]]:
    """Wait for each in turn, but only once the next has begun, or failed; what is there already is not held back."""
    begun = iter(copies)
    last: Copies | None = None
    while True:
        try:
            each = next(begun, None)
        except Exception:
            if last is not None:
                yield last.wait()
            raise
        if last is not None:
            yield last.wait()
        if each is None:
            return
        last = each if each.is_on_its_way else None
        if last is None:
            yield each.wait()
