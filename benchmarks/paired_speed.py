"""Levels of speed against each other on a machine that is not quiet: one pass of each in turn, round after round.

    python -m benchmarks.paired_speed --shape star-512-d16 --levels reference exact turbo --rounds 5

What slows the machine for a while slows all levels alike, so that the ratios of a round hold where its seconds do not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace

from star_cli.asked import checked_resolution
from star_cli.evaluation.speed_subject import Precision, Workload, load_subject
from star_cli.memory import keep_pages


def measure(workloads: list[Workload], rounds: int) -> list[list[float]]:
    """Seconds of every round, for each workload; after one pass each to warm up."""
    for workload in workloads:
        workload.draw(1)
    seconds: list[list[float]] = [[] for _ in workloads]
    for number in range(rounds):
        for workload, found in zip(workloads, seconds, strict=True):
            found.append(workload.draw(1))
        print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name or folder; the shipped one when neither this nor --shape is given")
    parser.add_argument("--shape", help="such as star-512-d16")
    parser.add_argument("--res", type=int)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantize")
    parser.add_argument("--levels", nargs="+", default=["reference", "exact"], help="the first is 1")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    keep_pages()
    subject = load_subject(options.model, options.shape, Precision(dtype=options.dtype, quantize=options.quantize))
    res = checked_resolution(options.res, subject.pipeline)
    defaults = subject.pipeline.defaults
    workloads = [Workload(subject, res, replace(defaults, speed=level)) for level in options.levels]
    seconds = measure(workloads, options.rounds)
    print("| level | least, s | median, s | times as fast, median of rounds |\n|---|---|---|---|")
    for level, found in zip(options.levels, seconds, strict=True):
        ratio = statistics.median(first / own for first, own in zip(seconds[0], found, strict=True))
        print(f"| {level} | {min(found):.2f} | {statistics.median(found):.2f} | {ratio:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
