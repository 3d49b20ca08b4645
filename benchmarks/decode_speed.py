"""What does decoding a picture cost? Milliseconds, peak memory and rounding of each way to do it.

    python -m benchmarks.decode_speed --shapes shipped published --sides 256 512 1024

Random weights; Linux. Each row is a process of its own, for its peak of memory: of all of it, and what decoding added.
Times are the least of some repeats; `--clock cpu` counts this thread's time alone, for a machine that is not idle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star_cli.images import to_uint8
from star_cli.memory import keep_pages
from star_cli.models.config import VQVAEConfig
from star_cli.models.convolution import PlainConvolution
from star_cli.models.strips import STRIP_BYTES, StripDecoder
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.models.winograd import fewest_multiplications

SHAPES = {
    "shipped": VQVAEConfig(
        codebook_size=1024, code_dim=16, channels=32, multipliers=(2, 3, 3), blocks=1, patch=4, groups=1
    ),
    "published": VQVAEConfig(),
}
WAYS = ("whole", "channels last", "strips", "winograd")
"""The last one in strips, too: in float32 that is how a CPU draws."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sides", nargs="+", type=int, default=[256, 512, 1024], help="pixels")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--keep-pages", action="store_true", help="as training does (star_cli.memory)")
    parser.add_argument("--strip-mib", type=float, default=STRIP_BYTES / 2**20, help="of the way `strips`")
    parser.add_argument("--compare", action="store_true", help="with the whole decoder in float32, in uint8 levels")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(options)))
        return 0
    print("| shape | side | dtype | way | ms | peak, MB | added, MB | difference |\n|---|---|---|---|---|---|---|---|")
    for shape in options.shapes:
        for side in options.sides:
            for dtype in options.dtypes:
                for way in options.ways:
                    _tell(shape, side, dtype, way)
    return 0


def _tell(shape: str, side: int, dtype: str, way: str) -> None:
    one = ["--one", "--shapes", shape, "--sides", str(side), "--dtypes", dtype, "--ways", way]
    command = [sys.executable, "-m", "benchmarks.decode_speed", *sys.argv[1:], *one]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"| {shape} | {side} | {dtype} | {way} | {found['ms']:.0f} | {found['peak']:.0f} | {found['added']:.0f} "
        f"| {found['difference']} |",
        flush=True,
    )


@torch.inference_mode()
def _measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    if options.keep_pages:
        keep_pages()
    clock = time.perf_counter if options.clock == "wall" else time.thread_time
    config = SHAPES[options.shapes[0]]
    torch.manual_seed(0)
    vqvae = MultiScaleVQVAE(config).eval()
    side = options.sides[0] // config.factor
    f_hat = torch.randn(1, config.code_dim, side, side)
    exact = to_uint8(vqvae.decode(f_hat)[0]).int() if options.compare else None
    vqvae.set_compute_dtype(DTYPES[options.dtypes[0]])
    decode = _way(options.ways[0], vqvae, int(options.strip_mib * 2**20))
    before, times = _memory_mb("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    for _ in range(options.repeats):
        start = clock()
        pixels = to_uint8(decode(f_hat)[0])
        times.append(clock() - start)
    difference = "." if exact is None else _levels(pixels.int(), exact)
    peak = _memory_mb("VmHWM")
    return {"ms": 1000 * min(times), "peak": peak, "added": peak - before, "difference": difference}


def _way(name: str, vqvae: MultiScaleVQVAE, strip_bytes: int) -> Callable[[Tensor], Tensor]:
    if name in ("strips", "winograd"):
        return StripDecoder(vqvae, strip_bytes, PlainConvolution if name == "strips" else fewest_multiplications)
    if name == "whole":
        return vqvae.decode
    vqvae.to(memory_format=torch.channels_last)
    return lambda f_hat: vqvae.decode(f_hat.contiguous(memory_format=torch.channels_last))


def _levels(ours: Tensor, exact: Tensor) -> str:
    apart = (ours - exact).abs()
    return f"{apart.max().item()} at most, {apart.float().mean().item():.3f} on average"


def _memory_mb(name: str) -> float:
    """Resident memory of this process, now or at most, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main())
