"""Draws the same mixed jobs alone, in passes of 1, 3 and 8, in shuffled order, by two processes and through local Ray.

    python -m benchmarks.batch_equal --rows 40

Shows: in float32 on a CPU every image has the tokens, the bytes and the recipe of the same job drawn alone.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from star_cli.asked import sampling_of
from star_cli.batch.folder import BatchFolder
from star_cli.batch.plan import read_plan
from star_cli.batch.runner import BatchRunner
from star_cli.batch.selection import Policy
from star_cli.batch.template import NameTemplate
from star_cli.checkpoints.folder import ModelFolder
from star_cli.checkpoints.known import find_model
from star_cli.generated import GeneratedImage
from star_cli.pipeline import StarPipeline

CALL = (sys.executable, "-m", "star_cli", "batch")


class Watched(StarPipeline):
    """Keeps the tokens of every image that it draws, by the picture's recipe."""

    tokens: dict[str, list[torch.Tensor]]

    def draw_jobs(self, *args: Any, **options: Any) -> Iterator[GeneratedImage]:
        for image in super().draw_jobs(*args, **options):
            self.keep(image)
            yield image

    def keep(self, image: GeneratedImage) -> None:
        self.tokens[json.dumps(image.recipe, sort_keys=True)] = image.token_maps


def mixed_rows(count: int, resolutions: list[int]) -> list[dict[str, Any]]:
    """Rows that differ in all that a row may say; `out` tells them apart whatever their order."""
    chance = random.Random(0)
    prompts = ["a red circle", "a blue square", "a green triangle to the left of a star", "x"]
    return [
        {
            "prompt": chance.choice(prompts),
            "seed": chance.randrange(1000),
            "res": chance.choice(resolutions),
            "negative": chance.choice(["", "", "blue"]),
            "guidance": chance.choice([2.0, 2.0, 1.0]),
            "out": f"{number}.png",
        }
        for number in range(count)
    ]


def draw_alone(pipe: Watched, folder: ModelFolder, rows: list[dict[str, Any]]) -> dict[str, bytes]:
    files = {}
    for row in rows:
        said = {name: row[name] for name in ("negative", "seed", "res")}
        (image,) = pipe(row["prompt"], options=sampling_of({"guidance": row["guidance"]}, folder), **said)
        pipe.keep(image)
        files[row["out"]] = image.encode()
    return files


def draw_batch(pipe: Watched, folder: ModelFolder, rows: list[dict[str, Any]], out: Path, size: int) -> None:
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    plan = read_plan(io.BytesIO(text), "jsonl", folder, {}, NameTemplate())
    with BatchFolder(out) as place:
        BatchRunner(pipe, plan, place, Policy(batch_size=size)).run()


def files_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--model", default="star-shapes")
    parser.add_argument("--no-ray", action="store_true")
    args = parser.parse_args()
    folder = find_model(args.model)
    pipe = Watched.from_pretrained(folder.path, device="cpu", dtype="float32")
    rows = mixed_rows(args.rows, sorted(folder.schedules)[:2])
    pipe.tokens = alone_tokens = {}
    alone = draw_alone(pipe, folder, rows)
    result: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in (1, 3, 8):
            shuffled = random.Random(size).sample(rows, len(rows))
            pipe.tokens = {}
            draw_batch(pipe, folder, shuffled, out := Path(scratch) / str(size), size)
            same_tokens = pipe.tokens.keys() == alone_tokens.keys() and all(
                all(map(torch.equal, maps, alone_tokens[recipe])) for recipe, maps in pipe.tokens.items()
            )
            result[f"tokens and recipes in passes of {size}"] = same_tokens
            result[f"files in passes of {size}"] = files_in(out) == alone
        table = Path(scratch) / "rows.jsonl"
        table.write_text("".join(f"{json.dumps(row)}\n" for row in random.Random(2).sample(rows, len(rows))))
        call = [*CALL, str(table), "--model", args.model, "--device", "cpu", "--dtype", "float32", "--quiet"]
        out = Path(scratch) / "two"
        parts = [
            subprocess.Popen([*call, "--out", str(out), "--batch-size", size], stdout=subprocess.DEVNULL)
            for size in ("2", "5")
        ]
        ended = [part.wait() for part in parts]
        result["files of two processes"] = ended == [0, 0] and files_in(out) == alone
        if not args.no_ray:
            out = Path(scratch) / "ray"
            subprocess.run([*call, "--out", str(out), "--engine", "ray"], check=True, stdout=subprocess.DEVNULL)
            result["files through Ray"] = files_in(out) == alone
    print(json.dumps(result, indent=2))
    sys.exit(0 if all(result.values()) else 1)


if __name__ == "__main__":
    main()
