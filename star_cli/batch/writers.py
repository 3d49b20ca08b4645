"""Threads that make files of drawn images while the next ones are drawn: encode, hash, write, journal."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from star_cli.batch.events import Event, InOrder
from star_cli.batch.folder import BatchFolder, Place
from star_cli.batch.plan import Job
from star_cli.batch.records import failure_of, record_of
from star_cli.errors import OutputError, StarError

if TYPE_CHECKING:
    from star_cli.generated import GeneratedImage

_WAITING = 16
"""Images drawn and not yet taken by a thread; more, and drawing waits."""


@dataclass(frozen=True, slots=True)
class Todo:
    """A claimed job."""

    job: Job
    place: Place
    number: int
    """In the order of events."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    todo: Todo
    image: GeneratedImage | bytes
    """Drawn here, or the bytes of a whole file that another machine drew."""
    seconds: float


class Writers:
    """Writes what is drawn into a batch's folder; `close` waits for all of it.

    Args:
        folder: of the batch, entered.
        order: where events go.
        threads: how many.
    """

    def __init__(self, folder: BatchFolder, order: InOrder, threads: int):
        self.fatal: StarError | None = None
        """Why nothing can be written any more."""
        self._folder = folder
        self._order = order
        self._queue: queue.Queue[_Drawn | None] = queue.Queue(_WAITING)
        # daemons: a second Ctrl-C does not wait for them, and a file is whole or not there
        self._threads = [threading.Thread(target=self._work, name="star-writer", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, todo: Todo, image: GeneratedImage | bytes, seconds: float) -> None:
        """Hand over an image and the seconds that drawing it took; waits while too many are waiting."""
        self._queue.put(_Drawn(todo, image, seconds))

    def close(self) -> None:
        """Wait until everything is written."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (drawn := self._queue.get()) is not None:
            job = drawn.todo.job
            try:
                event = self._write(drawn)
            except Exception as error:
                event = None
                self._folder.release(job)
                self.fatal = self.fatal or (error if isinstance(error, StarError) else _told(error))
            self._order.give(drawn.todo.number, event)

    def _write(self, drawn: _Drawn) -> Event:
        """One image.

        Raises:
            OutputError: neither it nor any other can be written.
        """
        job, start = drawn.todo.job, time.perf_counter()
        try:
            data = drawn.image if isinstance(drawn.image, bytes) else drawn.image.encode(job.format)
            file = self._folder.write(drawn.todo.place, data)
        except OutputError:
            raise
        except StarError as error:  # this one cannot be written; others may
            record = failure_of(job, str(error), drawn.seconds)
            self._folder.finish(record)
            return Event("failed", job, record=record, message=str(error))
        seconds = drawn.seconds + time.perf_counter() - start
        record = record_of(job, file, data, seconds)
        self._folder.finish(record)
        return Event("done", job, self._folder.path / file, record)


def _told(error: Exception) -> StarError:
    failure = OutputError(f"cannot write: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
