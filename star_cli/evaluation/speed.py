"""How fast does a model draw here? Whole passes, then one with clocks around its parts, against what the machine gives.

Letters: B images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from star_cli.asked import checked_resolution, sampling_of
from star_cli.checkpoints.folder import ModelFolder
from star_cli.checkpoints.known import SHIPPED, find_model
from star_cli.errors import OptionError
from star_cli.evaluation.speed_cold import measure_cold, summarise
from star_cli.evaluation.speed_floor import describe_profile, fastest_profile, workload_costs
from star_cli.evaluation.speed_machine import (
    Ceilings,
    describe_machine,
    describe_versions,
    measure_ceilings,
    threads_set,
)
from star_cli.evaluation.speed_report import FORMAT, FORMAT_VERSION
from star_cli.evaluation.speed_subject import Precision, Workload, find_shape, load_subject, subjects_of
from star_cli.hardware import choose_precision

OnStep = Callable[[str], None]
"""Told what is measured next."""
_PEAK_FILE, _STATUS_FILE = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5): resets the high-water mark of resident memory


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured."""

    repeat: int = 5
    """Passes of each batch size, after one to warm up; and of those with clocks, of which the fastest counts."""
    cold: int = 3
    """Fresh processes; 0 for none."""
    product_rows: int = 2048
    """Most rows of the matrix products that find the machine's rate."""
    convolution_side: int = 256
    """Widest convolution that does."""
    copy_bytes: int = 2**28
    ceiling_repeats: int = 5

    @classmethod
    def quick(cls) -> Effort:
        """Enough to see that it works, too little to quote."""
        return cls(repeat=1, cold=0, product_rows=64, convolution_side=16, copy_bytes=2**20, ceiling_repeats=1)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is measured."""

    model: str | None = None
    """A name or folder; the shipped model when neither this nor `shape` is given."""
    shape: str | None = None
    """See `speed_subject.find_shape`."""
    res: int | None = None
    """In pixels; the model's own when None."""
    batch_sizes: tuple[int, ...] = (1,)
    """The first is the one that is looked into."""
    threads: int | None = None
    """Of the CPU; torch's choice when None."""
    precision: Precision = field(default_factory=Precision)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SamplingOptions` that differ from the model's defaults; their names are flags of `star generate`."""
    effort: Effort = field(default_factory=Effort)


def run_bench(bench: Bench, on_step: OnStep = lambda name: None) -> dict[str, Any]:
    """Measure.

    Returns:
        Plain data: "subject", "settings", "machine", "versions", "cold" (None where not measured), "batches",
        "ceilings" and "profile". Seconds unless a key says otherwise.
    Raises:
        OptionError: a model, shape, resolution, device, dtype or rounding that is not there, or options of the draw
            that the weights rule out.
        OutputError: a fresh process did not draw.
    """
    folder = _checked(bench)
    with threads_set(bench.threads):
        cold = None
        if bench.effort.cold and folder is not None:  # a shape has no weights that another process could read
            cold = measure_cold(_generate(bench, folder), bench.effort.cold, bench.threads, on_step)
        on_step("loading")
        start = time.perf_counter()
        subject = load_subject(bench.model, bench.shape, bench.precision)
        loading = time.perf_counter() - start
        pipe = subject.pipeline
        res = checked_resolution(bench.res, pipe)
        options = replace(pipe.defaults, **bench.sampling).for_head(pipe.transformer.config.stable_head)
        workload = Workload(subject, res, options)
        batches = []
        for images in bench.batch_sizes:
            on_step(f"warm, batch {images}")
            batches.append(_measure_batch(workload, images, bench.effort.repeat))
        on_step("parts")
        times = fastest_profile(workload, bench.batch_sizes[0], bench.effort.repeat)
        on_step("the machine's ceilings")
        ceilings = workload_ceilings(workload, bench.batch_sizes[0], bench.effort)
        machine = describe_machine(pipe.device)
    costs = workload_costs(workload, bench.batch_sizes[0])
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "subject": subject.describe(),
        "settings": {
            "res": res,
            "repeat": bench.effort.repeat,
            **asdict(bench.precision),
            "device": pipe.device.type,
            "dtype": workload.dtype,
            "cuda_graphs": pipe.graphs,
            **options.to_dict(),
        },
        "machine": machine,
        "versions": describe_versions(),
        "cold": cold,
        "loading_s": loading,
        "batches": batches,
        "ceilings": ceilings,
        "profile": describe_profile(times, costs, workload, batches[0], ceilings),
    }


def _checked(bench: Bench) -> ModelFolder | None:
    """Before any work: what would otherwise be found out minutes later. The model's folder; None of a shape."""
    choose_precision(**asdict(bench.precision))
    if bench.shape is None:
        folder = find_model(bench.model or SHIPPED)
        checked_resolution(bench.res, folder)
        sampling_of(bench.sampling, folder)
        return folder
    if bench.res not in (None, drawn := find_shape(bench.shape).resolution):
        raise OptionError(f"shape {bench.shape} draws {drawn} pixels, not {bench.res}", "leave --res out")
    return None


# -- whole passes -----------------------------------------------------------------------------------------------------


def _measure_batch(workload: Workload, images: int, repeat: int) -> dict[str, Any]:
    pipe = workload.subject.pipeline
    device = pipe.device
    _reset_peak(device)
    for _ in range(1 if pipe.recordings is None else 2):  # the second pass is the one that records
        workload.draw(images)
    seconds = [workload.draw(images) for _ in range(repeat)]
    summary = summarise(seconds)
    tokens = workload.schedule.length
    return {
        "images": images,
        **summary,
        "images_per_s": images / summary["p50_s"],
        "tokens_per_s": images * tokens / summary["p50_s"],
        **_peak(device),
    }


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # no Linux, or not allowed: the mark is then that of the whole process
        _PEAK_FILE.write_text(_RESET_PEAK, encoding="ascii")


def _peak(device: torch.device) -> dict[str, int | None]:
    """Resident memory of this process at its highest, and what was taken of a GPU's."""
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    try:
        lines = _STATUS_FILE.read_text(encoding="ascii").splitlines()
        process = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        process = None
    return {"peak_memory_bytes": process, "peak_device_bytes": on_device}


def _generate(bench: Bench, folder: ModelFolder) -> list[str]:
    """The same picture as a command. Every option is a flag, for a flag wins over the user's own defaults."""
    (subject,) = subjects_of(folder.class_count, 1)
    what = [str(subject)] if folder.class_count is None else ["--class", str(subject)]
    flags = {
        "model": bench.model or SHIPPED,
        "res": checked_resolution(bench.res, folder),
        **asdict(bench.precision),
        **sampling_of(bench.sampling, folder).to_dict(),
    }
    given = [part for name, value in flags.items() if value is not None for part in _flag(name, value)]
    return ["generate", *what, *given, "--quiet"]


def _flag(name: str, value: Any) -> list[str]:
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{words}" if value else f"--no-{words}"]
    return [f"--{words}", str(value)]


def workload_ceilings(workload: Workload, images: int, effort: Effort) -> Ceilings:
    """The machine's rates, see `measure_ceilings`, over sizes that passes of so many images use and one large one."""
    pipe = workload.subject.pipeline
    width, vqvae = pipe.transformer.config.width, pipe.vqvae.config
    rows = min(2 * images * workload.schedule.sizes[-1], effort.product_rows)
    widest = (effort.product_rows, 1024, 4096) if effort.product_rows >= 1024 else (64, 64, 64)
    latent, pixels = workload.schedule.last_side, workload.res // vqvae.patch
    return measure_ceilings(
        pipe.device,
        [(rows, width, 4 * width), widest],
        [
            (vqvae.channels * vqvae.multipliers[0], min(pixels, effort.convolution_side)),
            (vqvae.channels * vqvae.multipliers[-1], min(latent, effort.convolution_side)),
        ],
        effort.copy_bytes,
        effort.ceiling_repeats,
    )
