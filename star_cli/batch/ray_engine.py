"""Draws a batch through Ray Data on a cluster that is there: actors with a GPU each draw, this process writes.

The jobs, the journal and the images are those of any other run; the model's folder must lie where all machines see it.
Ray comes with the extra: pip install 'star-cli[ray]'.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from star_cli.batch.events import Event, InOrder, OnEvent, Summary
from star_cli.batch.folder import BatchFolder
from star_cli.batch.plan import Plan
from star_cli.batch.records import failure_of
from star_cli.batch.runner import words_of
from star_cli.batch.selection import Policy, Selection
from star_cli.batch.writers import Todo, Writers
from star_cli.errors import OptionError, OutputError
from star_cli.generation.options import SamplingOptions
from star_cli.hardware import choose_precision
from star_cli.jobs import ImageJob
from star_cli.pipeline import StarPipeline

_USUAL_SIZE = 8
_ALL = 10**9


def run_on_ray(
    plan: Plan,
    policy: Policy,
    device: str,
    dtype: str,
    quantize: str | None,
    folder: BatchFolder,
    on_event: OnEvent,
    on_ready: Callable[[Callable[[], None]], None],
) -> Summary:
    """Do a batch with Ray Data. A cluster that `RAY_ADDRESS` or `ray start` names is used, else one is made here.

    Args:
        plan: all jobs.
        policy: what to do; `batch_size` is 8 when it is None.
        device: "auto" takes the cluster's GPUs, or CPUs where it has none.
        dtype: of the model.
        quantize: how its weights are rounded; None: not at all.
        folder: entered, on this machine.
        on_event: told of everything; results in the order of the input.
        on_ready: given what stops the work.
    Raises:
        OptionError: Ray is not installed, or weights are to be rounded as a CPU cannot.
        OutputError: nothing can be written any more, or the cluster failed.
    """
    ray = _ray()
    if quantize is not None and not _count_gpus(ray, device):  # what its GPUs can do, an actor finds out
        choose_precision("cpu", dtype, quantize)
    start = time.perf_counter()
    summary, order, stopped, asked = Summary(policy.count(plan)), InOrder(), threading.Event(), threading.Event()

    def stop() -> None:
        asked.set()
        stopped.set()

    def tell(events: Sequence[Event]) -> None:
        for event in events:
            summary.count(event)
            on_event(event)

    on_ready(stop)
    writers = Writers(folder, order, policy.writers)
    try:
        for group in Selection(plan, folder, policy, order, lambda setting: _ALL, stopped).passes():
            on_event(Event("drawing", group[0].job))
            for todo, drawn in _draw_on_ray(ray, plan, policy, group, device, dtype, quantize):
                _deliver(todo, drawn, folder, order, writers)
                tell(order.take())
                summary.gave_up = policy.gives_up(summary.new_failures)
                if writers.fatal is not None or summary.gave_up or stopped.is_set():
                    stopped.set()
                    break
    except ray.exceptions.RayError as error:
        raise OutputError(f"the Ray cluster failed: {error}".splitlines()[0], "run the same command again") from error
    finally:
        stopped.set()
        writers.close()
        tell([*order.take(), *order.take_all()])
    if writers.fatal is not None:
        raise writers.fatal
    summary.is_stopped, summary.seconds = asked.is_set(), time.perf_counter() - start
    return summary


def _ray() -> Any:
    """Ray, connected.

    Raises:
        OptionError: it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise OptionError("--engine ray needs Ray", "pip install 'star-cli[ray]'") from error
    # its own processes would write warnings to standard error, where ours are
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _count_gpus(ray: Any, device: str) -> int:
    """Those of the cluster that will draw."""
    return int(ray.cluster_resources().get("GPU", 0)) if device in ("auto", "cuda") else 0


def _deliver(todo: Todo, drawn: dict[str, Any], folder: BatchFolder, order: InOrder, writers: Writers) -> None:
    """What came from the cluster into the folder."""
    if not drawn["error"]:
        writers.put(todo, drawn["data"], drawn["seconds"])
        return
    record = failure_of(todo.job, drawn["error"], drawn["seconds"])
    folder.finish(record)
    order.give(todo.number, Event("failed", todo.job, record=record, message=drawn["error"]))


def _draw_on_ray(
    ray: Any, plan: Plan, policy: Policy, group: list[Todo], device: str, dtype: str, quantize: str | None
) -> Iterator[tuple[Todo, dict[str, Any]]]:
    """Jobs of one shape, each with the bytes of its file or why there are none, in whatever order they come."""
    setting = group[0].job.row.setting
    size = 1 if setting.sampling.compat == "official" else policy.batch_size or _USUAL_SIZE
    by_number = {todo.number: todo for todo in group}
    items = [
        {
            "number": todo.number,
            "subject": str(todo.job.row.subject),
            "negative": todo.job.row.negative,
            "seed": str(todo.job.seed),  # seeds of 63 bits survive as words
            "format": todo.job.format,
        }
        for todo in group
    ]
    gpus = _count_gpus(ray, device)
    actors = max(1, min(gpus or int(ray.cluster_resources().get("CPU", 1)) // 2, -(-len(items) // size)))
    drawn = ray.data.from_items(items, override_num_blocks=max(1, -(-len(items) // size))).map_batches(
        DrawActor,
        fn_constructor_kwargs={
            "model": plan.folder.path,
            "device": device,
            "dtype": dtype,
            "quantize": quantize,
            "res": setting.res,
            "sampling": setting.sampling.to_dict(),
        },
        batch_size=size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
    )
    for row in drawn.iter_rows():
        yield by_number[int(row["number"])], {**row, "error": str(row["error"])}


class DrawActor:
    """Holds a model on one machine of the cluster, and draws the batches that Ray Data hands it."""

    def __init__(self, model: Path, device: str, dtype: str, quantize: str | None, res: int, sampling: dict[str, Any]):
        self._pipe = StarPipeline.from_pretrained(model, device=device, dtype=dtype, quantize=quantize)
        self._res = res
        self._sampling = SamplingOptions.from_dict(sampling)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Columns of jobs to columns of files."""
        by_class = self._pipe.text_encoder is None
        jobs = [
            ImageJob(int(subject) if by_class else str(subject), int(seed), str(negative))
            for subject, seed, negative in zip(batch["subject"], batch["seed"], batch["negative"], strict=True)
        ]
        rows = list(self._draw(jobs, [str(format) for format in batch["format"]]))  # noqa: A001
        return {
            "number": [int(number) for number in batch["number"]],
            "data": [data for data, _, _ in rows],
            "error": [error for _, error, _ in rows],
            "seconds": [seconds for _, _, seconds in rows],
        }

    def _draw(self, jobs: list[ImageJob], formats: list[str]) -> Iterator[tuple[bytes, str, float]]:
        """Bytes, error and seconds of each; a pass that fails is halved until the job is found that cannot be drawn."""
        start = time.perf_counter()
        try:
            images = list(self._pipe.draw_jobs(jobs, res=self._res, options=self._sampling))
            files = [image.encode(one) for image, one in zip(images, formats, strict=True)]
        except Exception as error:
            if len(jobs) == 1:
                yield b"", words_of(error), time.perf_counter() - start
                return
            half = len(jobs) // 2
            yield from self._draw(jobs[:half], formats[:half])
            yield from self._draw(jobs[half:], formats[half:])
            return
        seconds = (time.perf_counter() - start) / len(jobs)
        yield from ((data, "", seconds) for data in files)
