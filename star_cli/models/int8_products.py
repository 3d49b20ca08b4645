"""What multiplies whole numbers on a CPU: exact sums, by whichever of torch's libraries does them fast.

Processors with AVX-512 that add up four products of bytes at a time (VNNI, AMX) multiply bytes as they are, through
oneDNN. Others add up pairs in 16 bits, which the largest bytes overflow: there activations keep 7 bits, and FBGEMM
multiplies. (2 cores of such a one, an AMD EPYC with AVX2: oneDNN 5 GOP/s, FBGEMM 270; float32 170.) Those with AVX2
and VNNI, some of Intel's, count among the others: what oneDNN does on them was not measured.

Letters: l rows, I numbers in, O numbers out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from star_cli.models.processor import NOT_THERE, lacks_avx512

LARGEST = 127
NARROW = 63
"""What 7 bits hold on either side of zero: two products with it and `LARGEST` on top of the zero point fit 16 bits."""
_ENGINE = "fbgemm"
_engine_lock = Lock()


class Int8Product(Protocol):
    """Rows times a weight that was rounded before."""

    at_once: int
    """Numbers in or out that are best worked on at a time."""
    takes: torch.dtype
    """Of the whole numbers that `multiply` takes."""

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """Write the product of rows (l, I), rounded as they come, to `out`, (l, O); both float32."""
        ...

    def multiply(self, whole: Tensor) -> Tensor:
        """The product alone: whole numbers (l, I), as they are rounded to, give (l, O)."""
        ...


class ByteProduct:
    """Rows rounded to 255 steps, each by its own largest; oneDNN multiplies.

    Args:
        weight: (O, I), float32.
    """

    takes = torch.int8
    at_once = 2**20  # so that what lies between the steps stays in the cache

    def __init__(self, weight: Tensor):
        values, steps = round_rows(weight)
        self.values = values.t().contiguous()  # (I, O): the layout that the product is fast in
        self._scales = steps[:, 0]

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """See `Int8Product`."""
        whole, steps = round_rows(rows)
        torch.mul(self.multiply(whole), steps, out=out).mul_(self._scales)

    def multiply(self, whole: Tensor) -> Tensor:
        """The product alone: int8 (l, I) -> int32 (l, O)."""
        return torch._int_mm(whole, self.values)


class NarrowProduct:
    """Rows rounded to 127 steps, each by its own largest; FBGEMM multiplies.

    Args:
        weight: (O, I), float32.
    """

    takes = torch.float32
    at_once = 2**24  # FBGEMM rounds what goes in, and scales what comes out, piece by piece itself

    def __init__(self, weight: Tensor):
        values, steps = round_rows(weight)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        with _engine_set(_ENGINE):
            rounded = torch._make_per_channel_quantized_tensor(values, steps[:, 0], zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(rounded, None)

    def __call__(self, rows: Tensor, out: Tensor) -> None:
        """See `Int8Product`."""
        steps = _steps(rows, NARROW)
        torch.mul(self.multiply(rows / steps), steps, out=out)

    def multiply(self, whole: Tensor) -> Tensor:
        """The product alone: float32 (l, I) in -63..63, which it rounds to whole numbers, -> float32 (l, O)."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(whole, 1.0, NARROW + 1, self._packed)


@contextmanager
def _engine_set(name: str) -> Iterator[None]:
    """Inside, torch packs weights for this library, and does not warn that such tensors may go some day.

    Both belong to the process: one thread at a time. When they have gone, `_is_narrow` says no.
    """
    with _engine_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quantize", category=UserWarning)
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = name
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


def int8_product(weight: Tensor) -> ByteProduct | NarrowProduct:
    """The product that this processor is fast at, of a weight (O, I) float32."""
    return NarrowProduct(weight) if _is_narrow() else ByteProduct(weight)


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row (l, I) to 255 steps of its own.

    Returns:
        Whole numbers (l, I) int8, -127..127, and what one step of each row is worth, (l, 1).
    """
    steps = _steps(rows, LARGEST)
    return (rows / steps).round_().to(torch.int8), steps


def _steps(rows: Tensor, largest: int) -> Tensor:
    """What one step of each row is worth, (l, 1), where its largest number is `largest` steps."""
    return rows.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(rows.dtype).tiny * largest) / largest


@cache
def has_int8_products() -> bool:
    """Are there any here that are exact?"""
    return _is_narrow() or _adds_bytes_exactly()


@cache
def _is_narrow() -> bool:
    """Must activations keep 7 bits, and can they? By what the processor is, never by a measurement."""
    if (not lacks_avx512() and _adds_bytes_exactly()) or _ENGINE not in torch.backends.quantized.supported_engines:
        return False
    rows, out = torch.full((2, 64), float(NARROW)), torch.empty(2, 8)
    try:
        NarrowProduct(torch.full((8, 64), -float(LARGEST)))(rows, out)
    except NOT_THERE:
        return False
    return bool((out == -64.0 * NARROW * LARGEST).all())


@cache
def _adds_bytes_exactly() -> bool:
    """Does oneDNN? Processors without VNNI may add pairs of products in 16 bits, which the largest ones overflow."""
    largest = torch.full((8, 64), LARGEST, dtype=torch.int8)
    return bool((torch._int_mm(largest, -largest.t().contiguous()) == -64 * LARGEST**2).all())
