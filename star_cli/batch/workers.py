"""Several GPUs of one machine: a process each, all on one folder. Claims see to it that no two do the same job, and
that the jobs of a process that dies are done by the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_cli.batch.events import Event, InOrder, OnEvent, Summary
from star_cli.batch.folder import BatchFolder
from star_cli.batch.plan import Job, Plan
from star_cli.batch.runner import BatchRunner
from star_cli.batch.selection import Policy
from star_cli.errors import OptionError, OutputError, StarError
from star_cli.hardware import choose_device, choose_precision
from star_cli.pipeline import StarPipeline

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

_PATIENCE_S = 0.2
_FINAL = {"done", "failed", "kept", "failed before"}


@dataclass(frozen=True)
class _Task:
    """What a process needs to know."""

    plan: Plan
    policy: Policy
    folder: Path
    device: str
    dtype: str
    quantize: str | None


def find_devices(text: str) -> list[str]:
    """The devices of `--devices`: "all" GPUs, or a list like "0,1" or "cuda:0,cpu".

    Raises:
        OptionError: one of them is not here, or no GPU is.
    """
    import torch

    if text == "all":
        if not torch.cuda.is_available():
            raise OptionError("--devices all: torch sees no GPU here", "leave it out")
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    names = [part.strip() for part in text.split(",")]
    devices = [f"cuda:{name}" if name.isdecimal() else name for name in names]
    for device in devices:
        if device in ("", "auto"):
            raise OptionError(f"--devices {text}: name each device", "write it like 0,1")
        choose_device(device)
    return devices


def run_on_devices(
    plan: Plan,
    policy: Policy,
    devices: list[str],
    dtype: str,
    quantize: str | None,
    folder: BatchFolder,
    on_event: OnEvent,
    on_ready: Callable[[Callable[[], None]], None],
) -> Summary:
    """Do a batch with a process for each device.

    Args:
        plan: all jobs.
        policy: for each process.
        devices: of torch.
        dtype: of the model.
        quantize: how its weights are rounded; None: not at all.
        folder: entered.
        on_event: told of everything; results in the order of the input.
        on_ready: given what stops the work.
    Raises:
        OptionError: one of the devices cannot round weights so.
        StarError: a process could not go on, and the others could not do its part.
    """
    if quantize not in (None, "none"):
        for device in devices:  # before each process finds it out for itself
            choose_precision(device, dtype, quantize)
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    ends: list[Connection] = []  # of pipes; no Event: its `set` waits for sleepers that may have died in their sleep
    start = time.perf_counter()
    processes: list[SpawnProcess] = []
    asked = threading.Event()

    def send_stop() -> None:
        for end in ends:
            with contextlib.suppress(OSError):  # it has ended already
                end.send(None)

    gathered = _Gathered(policy, on_event, Summary(policy.count(plan)), send_stop)

    def stop_all() -> None:
        asked.set()
        send_stop()

    on_ready(stop_all)
    try:
        for device in devices:
            task = _Task(plan, policy, folder.path, device, dtype, quantize)
            heard, end = context.Pipe(duplex=False)
            ends.append(end)
            process = context.Process(target=_work, args=(task, events, heard), daemon=True)
            with _without_ctrl_c():
                process.start()
            heard.close()
            processes.append(process)
        if asked.is_set():  # before all were there to hear it
            send_stop()
        while any(process.is_alive() for process in processes):
            gathered.take(events)
        gathered.take(events, is_last=True)
    finally:
        _end(processes, ends)
    summary = gathered.summary
    summary.is_stopped, summary.seconds = asked.is_set(), time.perf_counter() - start
    if summary.missing and not summary.is_stopped and not summary.gave_up:
        raise gathered.failure or OutputError(
            f"a process ended before its work, {summary.missing} images are missing", "run the same command again"
        )
    return summary


def _end(processes: Sequence[SpawnProcess], ends: Sequence[Connection]) -> None:
    for end in ends:
        end.close()  # to a process at work: stop
    for process in processes:
        if isinstance(sys.exception(), KeyboardInterrupt):  # a second Ctrl-C
            process.kill()
        process.join()


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A process that is started inside never sees Ctrl-C, not even while it imports: the parent says when to stop.

    It is blocked and not ignored, so that the parent loses none: it comes when this ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Gathered:
    """Events of several processes as those of one: what one of them drew is "elsewhere" for the others."""

    def __init__(self, policy: Policy, on_event: OnEvent, summary: Summary, on_giving_up: Callable[[], None]):
        self.summary = summary
        self.failure: StarError | None = None
        self._policy = policy
        self._on_giving_up = on_giving_up
        self._on_event = on_event
        self._order = InOrder()
        self._settled: set[int] = set()
        self._elsewhere: dict[int, Event] = {}

    def take(self, events: Any, is_last: bool = False) -> None:
        """Tell what has come; wait a moment when nothing has."""
        while True:
            try:
                said = events.get(timeout=_PATIENCE_S)
            except queue.Empty:
                break
            self._hear(said)
            if not is_last:
                break
        if is_last:
            for number, event in self._elsewhere.items():
                if number not in self._settled:
                    self._order.give(number, event)
        for event in [*self._order.take(), *(self._order.take_all() if is_last else [])]:
            self.summary.count(event)
            self._on_event(event)
        if self._policy.gives_up(self.summary.new_failures) and not self.summary.gave_up:
            self.summary.gave_up = True  # each process knows its own failures alone
            self._on_giving_up()

    def _hear(self, said: Any) -> None:
        if isinstance(said, StarError):
            self.failure = self.failure or said
        elif said == "gave up":
            self.summary.gave_up = True
        elif isinstance(said, Event):
            if said.job is None or said.kind in ("drawing", "warning"):
                self._on_event(said)
                return
            number = self._number(said.job)
            if said.kind in _FINAL and number not in self._settled:
                self._settled.add(number)
                self._order.give(number, said)
            elif said.kind == "elsewhere":
                self._elsewhere.setdefault(number, said)

    def _number(self, job: Job) -> int:
        """Place among the jobs of this shard."""
        return (job.index - 1) // self._policy.shard[1]


def _work(task: _Task, events: Any, stop: Connection) -> None:
    """One process: load the model, do what nobody else does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # blocked until here; the parent says when to stop
    try:
        pipe = StarPipeline.from_pretrained(
            task.plan.folder.path, device=task.device, dtype=task.dtype, quantize=task.quantize
        )
        with BatchFolder(task.folder) as folder:
            runner = BatchRunner(pipe, task.plan, folder, task.policy)
            threading.Thread(target=_watch, args=(stop, runner), daemon=True).start()
            if runner.run(events.put).gave_up:
                events.put("gave up")
    except StarError as error:
        told = OutputError(f"{task.device}: {error}", error.hint)
        events.put(told)
    except Exception as error:
        events.put(OutputError(f"{task.device}: {type(error).__name__}: {error}"))
    finally:
        events.close()
        events.join_thread()


def _watch(stop: Connection, runner: BatchRunner) -> None:
    """Stop when asked to, or when the parent is gone."""
    with contextlib.suppress(EOFError, OSError):
        stop.recv()
    runner.stop()
