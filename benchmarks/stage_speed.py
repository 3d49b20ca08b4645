"""What does each stage of a recipe cost? Seconds a step, pictures a second, memory, and the loop's own share.

    python -m benchmarks.stage_speed --recipe star-shapes --model star-shapes

Runs the real commands for a few steps each, one after the other, and reads their metrics.jsonl. Nothing else should run
beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="star-shapes")
    parser.add_argument("--model", default="star-shapes", help="gives VQVAE and text encoder to the later stages")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    steps = ["--steps", str(options.steps)]
    scenes = ["--set", "star.stage.scenes=256", "--set", "finetune.stage.scenes=256"]
    print("| stage | s a step | pictures/s | tokens/s | memory, GB | overhead | MFU |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        run = ["--run", folder, "--recipe", options.recipe]
        for stage, more in (
            ("clip", [*run, *steps]),
            ("vqvae", [*run, *steps, "--set", "vqvae.loop.preview_every=0"]),
            ("star", [*run, *steps, *scenes[:2], "--model", options.model]),
        ):
            _run("train", stage, *more, "--set", f"{stage}.loop.log_every=20")
            _tell(stage, Path(folder) / stage)
        finetune = ["--run", folder, "--model", options.model, "--out", f"{folder}/model", *steps, *scenes[2:]]
        _run("finetune", *finetune, "--set", "finetune.loop.log_every=20")
        _tell("finetune", Path(folder) / "finetune")
    return 0


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "star_cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def _tell(stage: str, folder: Path) -> None:
    """The figures of the last steps, of the first ones where the stage changes on the way."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last, before = lines[-1], lines[-2]
    seconds = (last["seconds"] - before["seconds"]) / (last["step"] - before["step"])
    mfu = f"{last['mfu']:.0%}" if last.get("mfu") else "."
    print(
        f"| {stage} | {seconds:.2f} | {last['images_per_s']:.1f} | {last['tokens_per_s']:,.0f} "
        f"| {last['memory_bytes'] / 1e9:.1f} | {last['overhead']:.1%} | {mfu} |"
    )


if __name__ == "__main__":
    sys.exit(main())
