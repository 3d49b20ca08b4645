"""Kills `star batch` with -9 at random moments until it is done, and checks what is left.

    python -m benchmarks.batch_kill --prompts 200 --kills 50

Shows: every image is there, has the bytes of an uninterrupted run's, none was drawn again after it was journalled, and
no temporary file is left.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOURNAL = "star-batch.jsonl"


def command(prompts: Path, out: Path, model: str) -> list[str]:
    batch = ["batch", str(prompts), "--out", str(out), "--model", model, "--batch-size", "4", "--quiet"]
    return [sys.executable, "-m", "star_cli", *batch]


def journalled(out: Path) -> list[str]:
    """Jobs that are done, as far as whole lines tell."""
    found = []
    for line in (out / JOURNAL).read_bytes().splitlines() if (out / JOURNAL).exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("status") == "done":
            found.append(record["job"])
    return found


def hashes(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.png"))}


def kill_at_random(call: list[str], out: Path, kills: int, prompts: int, chance: random.Random) -> int:
    """Kill so many times, at moments spread over the work; how many kills met a process at work."""
    met = 0
    for kill in range(kills):
        process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if chance.random() < 0.2:  # while it loads
            time.sleep(chance.random() * 5)
        else:
            wanted = (kill + 1) * prompts // (kills + 2)  # leaves something for every kill
            while process.poll() is None and len(journalled(out)) < wanted:
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
        met += process.poll() is None
        process.kill()
        process.wait()
        print(f"kill {kill + 1}: {len(journalled(out))} journalled, {len(hashes(out))} images")
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--model", default="star-shapes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prompts, killed, whole = Path(folder) / "prompts.txt", Path(folder) / "killed", Path(folder) / "whole"
        prompts.write_text("".join(f"a red circle number {number}\n" for number in range(args.prompts)))
        call = command(prompts, killed, args.model)
        met = kill_at_random(call, killed, args.kills, args.prompts, random.Random(args.seed))
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(command(prompts, whole, args.model), check=True, stdout=subprocess.DEVNULL)
        done, images = journalled(killed), hashes(killed)
        left = [path.name for path in killed.rglob("*") if path.suffix not in (".png", ".jsonl")]
        result = {
            "kills that met a process at work": met,
            "images": len(images),
            "equal to an uninterrupted run's": images == hashes(whole),
            "journalled twice": len(done) - len(set(done)),
            "other files": left,
            "cores": os.cpu_count(),
        }
        print(json.dumps(result, indent=2))
        is_right = images == hashes(whole) and len(images) == args.prompts == len(set(done)) == len(done) and not left
        sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
