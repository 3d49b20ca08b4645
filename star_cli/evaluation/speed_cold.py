"""How long a first picture takes: the command as a process of its own, imports, loading and all."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from star_cli.errors import OutputError


def measure_cold(
    arguments: Sequence[str], times: int, threads: int | None, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds of `star generate` from its start to its end with a picture written.

    Args:
        arguments: of `star`, but where the picture goes.
        times: how many processes, one after the other.
        threads: of the CPU; the process's own choice when None.
        on_step: told which process comes next.
    Raises:
        OutputError: it failed, in its own words.
    """
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    seconds = []
    with tempfile.TemporaryDirectory(prefix="star-bench-") as folder:
        for number in range(times):
            on_step(f"cold {number + 1} of {times}")
            command = [sys.executable, "-m", "star_cli", *arguments, "--out", str(Path(folder) / f"{number}.png")]
            start = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            seconds.append(time.perf_counter() - start)
            if done.returncode:
                said = (done.stderr.strip() or "no word of it").splitlines()[0].removeprefix("error: ")
                raise OutputError(f"a fresh process did not draw: {said}", "leave it out: --no-cold")
    return summarise(seconds)


def summarise(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 90th percentile (nearest rank), least, and all."""
    ordered = sorted(seconds)
    return {
        "p50_s": statistics.median(ordered),
        "p90_s": ordered[math.ceil(0.9 * len(ordered)) - 1],
        "min_s": ordered[0],
        "seconds": list(seconds),
    }
