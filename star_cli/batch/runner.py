"""Draws a batch: one thread selects and reads words ahead, this one draws, others write.

    with BatchFolder(Path("pictures")) as folder:
        summary = BatchRunner(pipe, plan, folder, Policy()).run(on_event)

An image depends on its job alone, so none of this changes any: not the size of passes, their order, or who draws them.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from star_cli.batch.events import Event, InOrder, OnEvent, Summary
from star_cli.batch.folder import BatchFolder
from star_cli.batch.passes import PassSize, Room
from star_cli.batch.plan import Job, Plan, Setting
from star_cli.batch.records import failure_of
from star_cli.batch.selection import Policy, Selection
from star_cli.batch.writers import Todo, Writers
from star_cli.errors import StarError
from star_cli.jobs import ImageJob
from star_cli.memory import is_out_of_memory

if TYPE_CHECKING:
    from star_cli.generated import GeneratedImage
    from star_cli.pipeline import StarPipeline, Told

GRACE_S = 4.0
"""After a stop is asked for, the pass in work has so long to come to its end."""
_PATIENCE_S = 0.2


@dataclass(frozen=True, slots=True)
class _Pass:
    todo: Sequence[Todo]
    told: Told | None
    """None where reading the words failed: drawing will say why."""


_Passes = queue.Queue[_Pass | BaseException | None]
"""From the thread that selects: what ended it comes last."""


class BatchRunner:
    """One process's part of a batch.

    Args:
        pipe: the model.
        plan: all jobs.
        folder: entered.
        policy: what to do, and how.
    """

    def __init__(self, pipe: StarPipeline, plan: Plan, folder: BatchFolder, policy: Policy):
        self._pipe = pipe
        self._plan = plan
        self._folder = folder
        self._policy = policy
        self._size = PassSize(policy.batch_size, Room(pipe.device))
        self._order = InOrder()
        self._stopped = threading.Event()
        self._deadline: float | None = None

    def stop(self) -> None:
        """Draw no more than the images in work, and those only if it does not take long. From any thread or signal."""
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_S
        self._stopped.set()

    def run(self, on_event: OnEvent | None = None) -> Summary:
        """Do all that is to be done.

        Args:
            on_event: told of everything, in this thread; results in the order of the input.
        Raises:
            OutputError: nothing can be written any more; what was written is whole and journalled.
            Exception: `on_event` failed: that ends the run, and is no job's failure.
        """
        try:
            return self._run(on_event)
        except _ListenerError as error:
            raise error.failure from error.failure.__cause__

    def _run(self, on_event: OnEvent | None) -> Summary:
        start = time.perf_counter()
        summary = Summary(self._policy.count(self._plan))

        def tell(event: Event) -> None:
            summary.count(event)
            if on_event is not None:
                try:
                    on_event(event)
                except Exception as error:
                    raise _ListenerError(error) from error

        writers = Writers(self._folder, self._order, self._policy.writers)
        passes: _Passes = queue.Queue(1)
        selecting = threading.Thread(target=self._select, args=(passes,), name="star-select", daemon=True)
        selecting.start()
        try:
            for one in self._ahead(passes):
                self._draw(list(one.todo), one.told, writers, tell)
                _tell_all(self._order.take(), tell)
                summary.gave_up = self._policy.gives_up(summary.new_failures)
                if writers.fatal or summary.gave_up:
                    break
        except _AbandonedError:
            pass
        finally:
            self._stopped.set()
            if not isinstance(sys.exception(), KeyboardInterrupt):
                selecting.join()  # a process that ends while a thread of it reads words with torch is aborted
                writers.close()
                _tell_all([*self._order.take(), *self._order.take_all()], tell)
        if writers.fatal is not None:
            raise writers.fatal
        summary.is_stopped = self._deadline is not None
        summary.seconds = time.perf_counter() - start
        return summary

    # -- selecting, in a thread of its own ----------------------------------------------------------------------------

    def _ahead(self, passes: _Passes) -> Iterator[_Pass]:
        """The passes; the next one is claimed and its words are read while this one is drawn.

        An empty pass comes when there is none for a while, so that what is written meanwhile is told.

        Raises:
            Exception: whatever ended the selection.
        """
        while not self._stopped.is_set():
            try:
                one = passes.get(timeout=_PATIENCE_S)
            except queue.Empty:
                one = _Pass((), None)
            if one is None:
                return
            if isinstance(one, BaseException):
                raise one
            yield one

    def _select(self, passes: _Passes) -> None:
        try:
            args = (self._plan, self._folder, self._policy, self._order, self._size_of, self._stopped)
            for todo in Selection(*args).passes():
                self._hand_over(passes, _Pass(todo, self._tell_words(todo)))
            self._hand_over(passes, None)
        except BaseException as error:
            self._hand_over(passes, error)

    def _hand_over(self, passes: _Passes, one: _Pass | BaseException | None) -> None:
        """Put it into the queue; into the void when nobody draws any more."""
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                passes.put(one, timeout=_PATIENCE_S)
                return

    def _size_of(self, setting: Setting) -> int:
        return 1 if setting.sampling.compat == "official" else self._size.size

    def _tell_words(self, todo: Sequence[Todo]) -> Told | None:
        try:
            return self._pipe.tell([_image_job(one.job) for one in todo])
        except Exception:  # drawing meets it again, and finds out whose it is
            return None

    # -- drawing ------------------------------------------------------------------------------------------------------

    def _draw(self, todo: list[Todo], told: Told | None, writers: Writers, tell: OnEvent) -> None:
        """One pass, or several smaller ones where memory is short or a job fails."""
        passes: list[tuple[list[Todo], Told | None]] = [(todo, told)] if todo else []
        while passes and writers.fatal is None:
            one, told = passes.pop(0)
            most = self._size_of(one[0].job.row.setting)
            if len(one) > most:
                passes[:0] = [(one[:most], None), (one[most:], None)]
                continue
            start = time.perf_counter()
            given = 0
            try:
                for image in self._images(one, told, tell):
                    writers.put(one[given], image, (time.perf_counter() - start) / len(one))
                    given += 1
                    self._check_deadline()
            except (_AbandonedError, _ListenerError):
                raise
            except Exception as error:
                passes[:0] = self._after_failure(error, one, one[given:], time.perf_counter() - start)
            else:
                self._size.report(len(one), time.perf_counter() - start)
            _tell_all(self._order.take(), tell)

    def _images(self, one: Sequence[Todo], told: Told | None, tell: OnEvent) -> Iterator[GeneratedImage]:
        setting = one[0].job.row.setting

        def on_scale(done: int, total: int) -> None:
            self._check_deadline()
            _tell_all(self._order.take(), tell)
            tell(Event("drawing", one[0].job, share=done / total, images=len(one)))

        for todo in one:
            for remark in self._remarks(todo.job):
                tell(Event("warning", todo.job, message=remark))
        tell(Event("drawing", one[0].job, images=len(one)))
        jobs = [_image_job(todo.job) for todo in one]
        return self._pipe.draw_jobs(jobs, res=setting.res, options=setting.sampling, told=told, on_scale=on_scale)

    def _check_deadline(self) -> None:
        """Between scales and between images: neither takes long.

        Raises:
            _AbandonedError: what is in work took too long after a stop.
        """
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise _AbandonedError

    def _remarks(self, job: Job) -> Iterator[str]:
        """What there is to say of a row's words, told with the row's first image."""
        if job.seed == job.row.seed:
            for text in (job.row.subject, job.row.negative):
                if isinstance(text, str) and text:
                    yield from self._pipe.remarks(text)

    def _after_failure(
        self, error: Exception, one: Sequence[Todo], rest: list[Todo], seconds: float
    ) -> list[tuple[list[Todo], Told | None]]:
        """What to draw again: halves when memory ran out, each alone to find the one that fails; it is journalled."""
        is_short = is_out_of_memory(error)
        if is_short:
            _free_memory(self._pipe)
        if len(rest) > 1 and is_short:
            self._size.halve(len(one))
            half = (len(rest) + 1) // 2
            return [(rest[:half], None), (rest[half:], None)]
        if len(rest) > 1 or (rest and len(one) > 1):
            return [([todo], None) for todo in rest]
        for todo in rest:
            words = words_of(error)
            record = failure_of(todo.job, words, seconds)
            self._folder.finish(record)
            self._order.give(todo.number, Event("failed", todo.job, record=record, message=words))
        return []


def _tell_all(events: Sequence[Event], tell: OnEvent) -> None:
    for event in events:
        tell(event)


class _AbandonedError(Exception):
    """The pass in work takes too long to wait for."""


class _ListenerError(Exception):
    """Whoever is told of events failed. In a class of its own, so that no job is taken to have failed."""

    def __init__(self, failure: Exception):
        super().__init__(str(failure))
        self.failure = failure


def _image_job(job: Job) -> ImageJob:
    return ImageJob(job.row.subject, job.seed, job.row.negative)


def words_of(error: Exception) -> str:
    """Why a job failed, for journal and user."""
    if is_out_of_memory(error):
        return "out of memory"
    return str(error) if isinstance(error, StarError) else f"{type(error).__name__}: {error}"


def _free_memory(pipe: StarPipeline) -> None:
    if pipe.device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
