"""What other precisions would gain on this CPU: the matrix product of a block, in each of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from star_cli.errors import OptionError
from star_cli.models.int8 import Int8Weight, check_int8
from star_cli.models.linear import linear

ROWS, WIDTH, REPEATS = 512, 1024, 4
"""Tokens of a guided large scale, width of the published models with 16 blocks, and how often it is done."""


@torch.inference_mode()
def measure_speedups() -> dict[str, float | None]:
    """How many times as fast as in float32 a product of `ROWS` tokens is, in well under half a second.

    Returns:
        By "bfloat16" and "int8", rounding of the activations included; None where that is not there.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    half = weight.bfloat16()
    usual = _seconds(lambda: linear(x, weight))
    found: dict[str, float | None] = {"bfloat16": usual / _seconds(lambda: linear(x.bfloat16(), half)), "int8": None}
    try:
        check_int8(x.device, x.dtype)
    except OptionError:
        return found
    rounded = Int8Weight.of(weight)
    return found | {"int8": usual / _seconds(lambda: linear(x, rounded))}


def _seconds(product: Callable[[], Tensor]) -> float:
    """The least of several."""
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        product()
        taken.append(time.perf_counter() - started)
    return min(taken)
