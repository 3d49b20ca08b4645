"""Does a run that is killed at random moments end in the same weights as one that is left alone?

    python -m benchmarks.kill_resume --kills 10 --seed 0

Trains `kill_resume.toml` twice with `star train all`: once to the end, once with SIGKILL sent to it (and its workers)
at random moments, each time gone on with. Compares the two model folders' hashes. One process, CPU.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RECIPE = Path(__file__).with_suffix(".toml")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        return _compare(Path(scratch), options.kills, random.Random(options.seed))


def _compare(scratch: Path, kills: int, rng: random.Random) -> int:
    left_alone, killed = scratch / "left-alone", scratch / "killed"
    process = _start(left_alone)
    _wait_for_steps(process, left_alone, 0.0)
    began = time.monotonic()
    _expect_end(process)
    lasts = time.monotonic() - began
    print(f"left alone: {lasts:.1f} s of training")
    done = 0
    while done < kills:
        process, since = _start(killed), time.time()
        if not _wait_for_steps(process, killed, since):
            print(f"it was done after {done} kills: give it a longer recipe, or fewer kills")
            return 2
        time.sleep(rng.uniform(0, 1.5 * lasts / kills))  # less than the whole: it must not end before the last kill
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            done += 1
            print(f"kill {done}: {_where(killed)}")
    _expect_end(_start(killed))
    hashes = [_hash(folder / "model") for folder in (left_alone, killed)]
    print(f"left alone {hashes[0]}\nkilled     {hashes[1]}")
    print("the same weights" if hashes[0] == hashes[1] else "OTHER weights")
    return int(hashes[0] != hashes[1])


def _start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "star_cli", "train", "all", "--recipe", str(RECIPE), "--threads", "1"]
    command += ["--out", str(folder / "model"), "--run", str(folder / "run")]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)


def _wait_for_steps(process: subprocess.Popen[bytes], folder: Path, since: float) -> bool:
    """Until the process writes metrics; False when it ended before."""
    while process.poll() is None:
        if any(path.stat().st_mtime > since for path in folder.glob("run/*/metrics.jsonl")):
            return True
        time.sleep(0.01)
    return False


def _expect_end(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise SystemExit(f"training failed with exit code {process.returncode}")


def _where(folder: Path) -> str:
    """Newest checkpoint of each stage."""
    newest = {path.parent.name: path.stem for path in sorted(folder.glob("run/*/checkpoint-*.pt"))}
    return ", ".join(f"{stage} {name.removeprefix('checkpoint-').lstrip('0')}" for stage, name in newest.items())


def _hash(folder: Path) -> str:
    from star_cli.checkpoints.folder import read_model_folder

    files = read_model_folder(folder).files
    return " ".join(record.sha256[:16] for name, record in sorted(files.items()) if name.endswith(".safetensors"))


if __name__ == "__main__":
    sys.exit(main())
