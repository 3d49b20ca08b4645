"""How much memory does one picture need? One cold pass of a published size with random weights, in this process.

    python -m benchmarks.peak_memory --shape star-1024-d30 --dtype bfloat16

`star bench` tells it as well, but draws several times, which at 1024 pixels takes a CPU a while.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from star_cli.evaluation.speed_subject import Precision, Workload, find_shape, load_subject
from star_cli.memory import keep_pages, peak_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="star-1024-d30")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    given = parser.parse_args(arguments)
    keep_pages()
    start = time.perf_counter()
    subject = load_subject(None, given.shape, Precision(device="cpu", dtype=given.dtype))
    loaded = peak_bytes()
    print(f"loaded: {time.perf_counter() - start:.1f} s, peak {loaded / 1e9:.2f} GB", flush=True)
    seconds = Workload(subject, find_shape(given.shape).resolution, subject.pipeline.defaults).draw(1)
    print(f"one picture: {seconds:.1f} s, peak {peak_bytes() / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
