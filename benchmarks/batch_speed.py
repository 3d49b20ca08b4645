"""Images a second of `star batch`: batch 8, batch 1, and eight processes at once; and what the panel costs.

    python -m benchmarks.batch_speed --images 32

Seconds are those from the first image to the last; for the eight processes, and for one beside them, loading counts.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CALL = (sys.executable, "-m", "star_cli", "batch")
WAYS = {
    "batch 1": ("--batch-size", "1", "--quiet"),
    "batch 8": ("--batch-size", "8", "--quiet"),
    "batch 8 with panel": ("--batch-size", "8"),
    "auto": ("--quiet",),
}


def run(prompts: Path, out: Path, *flags: str, terminal: bool = False) -> float:
    """Seconds from the first to the last image that were drawn, loading left out."""
    call = [*CALL, str(prompts), "--out", str(out), "--json", *flags]
    if terminal:
        return _on_terminal(call)
    done = subprocess.run(call, check=True, capture_output=True, text=True)
    return _seconds(done.stdout)


def _on_terminal(call: list[str]) -> float:
    """With standard error on a terminal, so that the panel is drawn."""
    main_end, other_end = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(main_end, 65536):
                shown.extend(data)
        except OSError:
            return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=other_end, text=True)
    os.close(other_end)
    output, _ = process.communicate()
    if b"images/s" not in shown:
        raise RuntimeError("the panel was not shown")
    return _seconds(output)


def _seconds(output: str) -> float:
    events = [json.loads(line) for line in output.splitlines()]
    return float(events[-1]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts; all in turn")
    parser.add_argument("--res", default="256")
    parser.add_argument("--model", default="star-shapes")
    args = parser.parse_args()
    same = ("--res", args.res, "--model", args.model)
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("".join(f"a red circle number {number}\n" for number in range(args.images)))
        run(prompts, Path(folder) / "warm", "--shard", f"1/{args.images}", *same)
        for turn in range(args.rounds):
            for name, flags in WAYS.items():
                out = Path(folder) / f"{name} {turn}"
                seconds = run(prompts, out, *flags, *same, terminal="--quiet" not in flags)
                rates[name] = max(args.images / seconds, rates.get(name, 0.0))
        start = time.perf_counter()
        eight = Path(folder) / "eight"
        alone = [*CALL, str(prompts), "--out", str(eight), "--quiet", "--batch-size", "1", *same]
        parts = [subprocess.Popen([*alone, "--shard", f"{part}/8"], stdout=subprocess.DEVNULL) for part in range(1, 9)]
        if any(part.wait() for part in parts):
            raise RuntimeError("a process failed")
        rates["8 processes, with loading"] = args.images / (time.perf_counter() - start)
        start = time.perf_counter()
        run(prompts, Path(folder) / "whole", "--batch-size", "8", *same)
        rates["batch 8, with loading"] = args.images / (time.perf_counter() - start)
    for name, rate in rates.items():
        print(f"{name:28} {rate:7.3f} images/s")
    print(f"{'batch 8 : batch 1':28} {rates['batch 8'] / rates['batch 1']:7.3f}")
    print(f"{'batch 8 : 8 processes':28} {rates['batch 8, with loading'] / rates['8 processes, with loading']:7.3f}")
    print(f"{'panel costs':28} {100 * (1 - rates['batch 8 with panel'] / rates['batch 8']):7.2f} %")


if __name__ == "__main__":
    main()
