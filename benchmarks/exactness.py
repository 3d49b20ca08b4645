"""Does the exact engine draw the tokens of the plain one, alone and in batches?

    python -m benchmarks.exactness --model star-shapes --model star-icons --shape star-512-d6 --prompts 50

Draws each prompt with a seed of its own at each resolution: by `--speed reference` alone, by `exact` alone and by
`exact` in passes of eight; counts the pictures whose every token is the same. A shape has random weights and text
features, so that pictures differ by their seeds alone, and the resolution of its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed_drift import read_prompts
from star_cli.evaluation.speed_subject import Precision, load_subject
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.jobs import ImageJob
from star_cli.pipeline import StarPipeline

BATCH = 8
Drawing = list[list[Tensor]]
"""Token maps of each picture, by scale."""


def draw_all(pipe: StarPipeline, prompts: Sequence[str], res: int, speed: str, batch: int) -> Drawing:
    """Tokens of a picture for each prompt; seeds count from 0."""
    options = replace(pipe.defaults, speed=speed)
    found: Drawing = []
    for first in range(0, len(prompts), batch):
        jobs = [ImageJob(prompt, first + offset) for offset, prompt in enumerate(prompts[first : first + batch])]
        told, randomness = pipe.tell(jobs), random_generators([job.seed for job in jobs])
        drawn = draw(pipe.transformer, pipe.vqvae.quantizer, *told, pipe.schedules[res], options, randomness)
        found += [[maps[image].clone() for maps in drawn.token_maps] for image in range(len(jobs))]
        print(f"\r{speed}, {batch} at once: {len(found)}/{len(prompts)} ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def count_same(first: Drawing, second: Drawing) -> int:
    """Pictures with the same tokens at every scale."""
    return sum(all(map(torch.equal, one, other)) for one, other in zip(first, second, strict=True))


def subjects(options: argparse.Namespace) -> Iterator[tuple[str, StarPipeline, list[str]]]:
    """Every model with its prompts."""
    lines = read_prompts(Path(__file__).parent.parent / "prompts" / "icons.txt")
    for name in options.model:
        yield name, load_subject(name, None, Precision(dtype="float32")).pipeline, lines[: options.prompts]
    for name in options.shape:
        subject = load_subject(None, name, Precision(dtype="float32"))
        yield name, subject.pipeline, [str(told) for told in subject.subjects(options.prompts)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="name or folder; may be given again")
    parser.add_argument("--shape", action="append", default=[], help="such as star-512-d6; may be given again")
    parser.add_argument("--prompts", type=int, default=50, help="pictures of each")
    options = parser.parse_args()
    print(f"| model | pixels | exact alone | exact, {BATCH} at once |\n|---|---|---|---|")
    is_exact = True
    for name, pipe, prompts in subjects(options):
        for res in pipe.resolutions:
            plain = draw_all(pipe, prompts, res, "reference", 1)
            same = [count_same(plain, draw_all(pipe, prompts, res, "exact", batch)) for batch in (1, BATCH)]
            is_exact = is_exact and set(same) == {len(prompts)}
            print(f"| {name} | {res} | {same[0]} of {len(prompts)} | {same[1]} of {len(prompts)} |", flush=True)
    return 0 if is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
