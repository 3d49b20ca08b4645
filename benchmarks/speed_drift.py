"""What does each level of `--speed` save, and how far does it lead the picture away from the exact one?

    python -m benchmarks.speed_drift --model star-shapes --res 256 --limit 40

Draws the same prompts with the same seeds at each level, one picture after another: seconds of the processor (of the
clock with --clock, as a GPU needs it), PSNR to the pictures of `exact`, and how many the judge calls right. Another
model is measured with its own judge, `--judge MODULE`: a module with `prompts()`, pairs of a prompt and what is wanted,
and `judge(picture, wanted)`, whose answer has `all_ok`; without one, `--prompts FILE` has one prompt a line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.thinned import thinned

LEVELS = ("exact", "reference", "fast", "turbo")
JUDGE = "benchmarks.shapes_judge"


@dataclass(frozen=True)
class Measured:
    """One level."""

    speed: str
    seconds: float
    """Of a picture, the median."""
    psnr: float | None
    """Of the pictures that differ from the exact ones, the median, in dB; None when all are the same."""
    worst_psnr: float | None
    same: int
    """Pictures that are the exact ones to the last bit."""
    right: int | None
    """Pictures that the judge calls right."""
    pictures: int


def psnr(first: Tensor, second: Tensor) -> float | None:
    """Of two pictures (H, W, 3) uint8, in dB; None when they are the same."""
    error = (first.float() - second.float()).square().mean()
    return None if error == 0 else float(10 * torch.log10(255**2 / error))


def measure(
    pipeline: Any,
    speed: str,
    asked: Sequence[tuple[str, Any]],
    exact: Sequence[Tensor],
    options: argparse.Namespace,
    judge: Callable[[Any, Any], Any] | None,
) -> tuple[Measured, list[Tensor]]:
    """Draw all prompts at one level; `exact` is empty for the level that the others are compared with."""
    clock = time.perf_counter if options.clock else time.process_time
    sampling = replace(pipeline.defaults, speed=speed)
    seconds, pixels, right = [], [], 0
    pipeline(asked[0][0], res=options.res, seed=options.seed, options=sampling)  # what is made once
    for number, (prompt, wanted) in enumerate(asked, start=1):
        start = clock()
        (image,) = pipeline(prompt, res=options.res, seed=options.seed, options=sampling)
        seconds.append(clock() - start)
        pixels.append(image.pixels)
        right += bool(judge and judge(image.to_pil(), wanted).all_ok)
        print(f"\r{speed}: {number}/{len(asked)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    apart = [psnr(one, other) for one, other in zip(pixels, exact or pixels, strict=True)]
    differing = [value for value in apart if value is not None]
    return (
        Measured(
            speed=speed,
            seconds=statistics.median(seconds),
            psnr=statistics.median(differing) if differing else None,
            worst_psnr=min(differing, default=None),
            same=len(apart) - len(differing),
            right=right if judge else None,
            pictures=len(asked),
        ),
        pixels,
    )


def read_prompts(file: Path) -> list[str]:
    """Its lines, but for empty ones and comments."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _asked(options: argparse.Namespace) -> tuple[list[tuple[str, Any]], Callable[[Any, Any], Any] | None]:
    """Prompts with what is wanted, and the judge."""
    if options.prompts:
        asked, judge = [(line, None) for line in read_prompts(options.prompts)], None
    else:
        module = importlib.import_module(options.judge)
        asked, judge = list(module.prompts()), module.judge
    return thinned(asked, options.limit), judge


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    from star_cli.pipeline import StarPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="star-shapes")
    parser.add_argument("--res", type=int, help="pixels; the model's default when left out")
    parser.add_argument("--limit", type=int, default=40, help="so many prompts, evenly spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", nargs="+", default=LEVELS, choices=LEVELS)
    parser.add_argument("--judge", default=JUDGE, metavar="MODULE")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="prompts without a judge")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clock", action="store_true", help="seconds of the clock, not of the processor")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    pipeline = StarPipeline.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    asked, judge = _asked(options)
    levels = ["exact", *(level for level in options.levels if level != "exact")]
    exact: list[Tensor] = []
    found: list[Measured] = []
    print("| level | seconds a picture | the same | PSNR of the others, median (worst), dB | right |")
    print("|---|---|---|---|---|")
    for speed in levels:
        measured, pixels = measure(pipeline, speed, asked, exact, options, judge)
        exact = exact or pixels
        found.append(measured)
        print(_row(measured), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=2) + "\n", encoding="utf-8")


def _row(one: Measured) -> str:
    apart = "." if one.psnr is None else f"{one.psnr:.1f} ({one.worst_psnr:.1f})"
    right = "." if one.right is None else f"{one.right} of {one.pictures}"
    return f"| {one.speed} | {one.seconds:.3f} | {one.same} of {one.pictures} | {apart} | {right} |"


if __name__ == "__main__":
    main()
