"""Which of torch's attentions is fastest in bfloat16 on this CPU, and how far is each from the exact result?

    python -m benchmarks.attention_speed --threads 2

One layer of STAR at depth 16 on its last scale at 512 px: 2 rows, 16 heads of width 64, 1,024 queries on 2,240 keys,
queries and keys of unit length, queries times a gain. Milliseconds, the least of some repeats, and the root mean
square of the error over that of the result, against float64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from star_cli.memory import keep_pages

QUERIES, KEYS, HEADS, WIDTH, ROWS = 1024, 2240, 16, 64, 512
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Torch's own choice: the flash kernel."""
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)


def plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Torch's kernel of separate operations, which adds up in float32."""
    with sdpa_kernel(SDPBackend.MATH):
        return fused(queries, keys, values)


def in_parts(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Head by head, some rows at a time: products and softmax in the dtype of the operands, scores in the cache."""
    shape, out = queries.shape, torch.empty_like(queries).flatten(0, 1)
    queries, keys, values = queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
    for head in range(len(queries)):
        here = slice(head, head + 1)
        for first in range(0, queries.shape[1], ROWS):
            rows = slice(first, first + ROWS)
            torch.bmm(torch.bmm(queries[here, rows], keys[here]).softmax(-1), values[here], out=out[here, rows])
    return out.view(shape)


def scores_in_float32(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`in_parts`, but queries with keys, and the softmax, in float32."""
    shape, out = queries.shape, torch.empty_like(queries).flatten(0, 1)
    queries, keys, values = queries.flatten(0, 1).float(), keys.flatten(0, 1).float(), values.flatten(0, 1)
    for head in range(len(queries)):
        for first in range(0, queries.shape[1], ROWS):
            rows = slice(first, first + ROWS)
            scores = torch.ops.mkldnn._linear_pointwise(queries[head, rows], keys[head], None, "none", [], "")
            out[head, rows] = scores.softmax(-1).to(values.dtype) @ values[head]
    return out.view(shape)


def compiled_flex() -> Attention:
    """Flex attention, compiled to C++ here and now: needs a compiler and its time."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda queries, keys, values: compiled(queries, keys, values, scale=1.0)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gain", type=float, default=20.0, help="the largest score")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--flex", action="store_true", help="flex attention, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_pages()
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, HEADS, count, WIDTH, generator=generator) for count in (QUERIES, KEYS, KEYS)]
    operands = [F.normalize(drawn[0], dim=-1) * options.gain, F.normalize(drawn[1], dim=-1), drawn[2]]
    exact = fused(*(each.double() for each in operands))
    ways: dict[str, tuple[Attention, torch.dtype]] = {
        "fused, float32": (fused, torch.float32),
        **{
            way.__name__.replace("_", " "): (way, torch.bfloat16) for way in (fused, plain, in_parts, scores_in_float32)
        },
    }
    if options.flex:
        ways["flex"] = (compiled_flex(), torch.bfloat16)
    print("| way | ms | first call, s | error |\n|---|---|---|---|")
    for name, (attend, dtype) in ways.items():
        given = [each.to(dtype) for each in operands]
        seconds = []
        for _ in range(1 + options.repeat):
            start = time.perf_counter()
            result = attend(*given)
            seconds.append(time.perf_counter() - start)
        error = (result.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        print(f"| {name} | {1e3 * min(seconds[1:]):.0f} | {seconds[0]:.1f} | {error:.4f} |", flush=True)


if __name__ == "__main__":
    main()
