"""Reading what comes next in other processes, while this one computes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def read_ahead(read: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """What `read` makes of each item, in their order.

    Args:
        read: picklable; gets one item.
        items: picklable, those of `read`.
        workers: processes that read; torch gives each a single thread. 0: this process reads, one item at a time.
    Raises:
        Exception: as `read` raises it, in whichever process.
        RuntimeError: from DataLoader, when a worker died.
    """
    loader = DataLoader(
        _Read(read),
        batch_size=None,
        sampler=items,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_leave_signals_alone,
        generator=torch.Generator(),  # else it takes its seed from the global one, and a resumed run would differ
    )
    for loaded in loader:
        if isinstance(loaded, Exception):
            raise loaded
        yield loaded


class _Read(Dataset[Any]):
    """A function as a map-style dataset."""

    def __init__(self, read: Callable[[Any], Any]):
        self.read = read

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.read(item)
        except Exception as error:  # raised on the other side: DataLoader would put a traceback into the message
            return error


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _leave_signals_alone(worker: int) -> None:
    """The main process decides what Ctrl-C means; a worker that died of it would take the work under way with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
