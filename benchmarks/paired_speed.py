"""Levels of speed against each other on a machine that is not quiet: one pass of each in turn, round after round.

    python -m benchmarks.paired_speed --shape star-512-d16 --levels reference exact turbo --rounds 5
    python -m benchmarks.paired_speed --shape star-512-d16 --levels exact --floors

What slows the machine for a while slows all levels alike, so that the ratios of a round hold where its seconds do not.
The same for floors: the machine's rates are measured before and after every pass, which is held against their mean.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from star_cli.asked import checked_resolution
from star_cli.evaluation.speed import Effort, workload_ceilings
from star_cli.evaluation.speed_floor import workload_costs, workload_floors
from star_cli.evaluation.speed_subject import Precision, Workload, load_subject
from star_cli.memory import keep_pages

EFFORT = Effort(ceiling_repeats=3)


class Pass(NamedTuple):
    """One picture."""

    seconds: float
    floor: float
    """Of the machine as it was just then; 0 where it was not asked for."""


def measure(workloads: Sequence[Workload], rounds: int, floor: Callable[[Workload], float]) -> list[list[Pass]]:
    """Every round's pass of each workload; after one pass each to warm up."""
    for workload in workloads:
        workload.draw(1)
    passes: list[list[Pass]] = [[] for _ in workloads]
    for number in range(rounds):
        for workload, found in zip(workloads, passes, strict=True):
            before = floor(workload)
            seconds = workload.draw(1)
            found.append(Pass(seconds, (before + floor(workload)) / 2))
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return passes


def floor_now(workload: Workload) -> float:
    """Seconds less than which the machine, as it is now, cannot need for one picture."""
    ceilings = workload_ceilings(workload, 1, EFFORT)
    return sum(workload_floors(workload_costs(workload, 1), workload, ceilings).values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder; the shipped one when neither this nor --shape is given")
    parser.add_argument("--shape", help="such as star-512-d16")
    parser.add_argument("--res", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize")
    parser.add_argument("--levels", nargs="+", default=["reference", "exact"], help="the first is 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--floors", action="store_true", help="measure the machine beside every pass")
    options = parser.parse_args()
    keep_pages()
    subject = load_subject(options.model, options.shape, Precision(dtype=options.dtype, quantize=options.quantize))
    res = checked_resolution(options.res, subject.pipeline)
    defaults = subject.pipeline.defaults
    workloads = [Workload(subject, res, replace(defaults, speed=level)) for level in options.levels]
    passes = measure(workloads, options.rounds, floor_now if options.floors else lambda workload: 0.0)
    heads = ["level", "least, s", "median, s", "times as fast, median of rounds"]
    heads += ["floor, s", "times the floor, median (each)"] if options.floors else []
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for level, found in zip(options.levels, passes, strict=True):
        seconds = [one.seconds for one in found]
        ratio = statistics.median(first.seconds / own.seconds for first, own in zip(passes[0], found, strict=True))
        row = [level, f"{min(seconds):.2f}", f"{statistics.median(seconds):.2f}", f"{ratio:.2f}"]
        if options.floors:
            times = [one.seconds / one.floor for one in found]
            each = ", ".join(f"{one:.2f}" for one in times)
            floor = statistics.median(one.floor for one in found)
            row += [f"{floor:.2f}", f"{statistics.median(times):.2f} ({each})"]
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
