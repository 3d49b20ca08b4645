"""What a machine is, and the most that it gives: products, convolutions and copies, at sizes that drawing uses.

Letters: M N K sides of a product, C channels, h w cells.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli import __version__
from star_cli.models.drawing_cost import Cost, Unit
from star_cli.models.int8_convolution import Int8Convolution, has_int8_convolutions, round_map
from star_cli.models.int8_products import NARROW, has_int8_products, int8_product
from star_cli.models.linear import linear

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "neon")
"""Of a CPU, those that matrix products make use of."""
GIGA = 1e9
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """CPU, cores this process may use, threads, GPU where that is the device."""
    flags = _cpu_lines("flags") or _cpu_lines("Features")
    return {
        "system": platform.platform(),
        "cpu": (_cpu_lines("model name") or [platform.processor() or platform.machine()])[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "flags": [flag for flag in FLAGS if flags and flag in flags[0].split()],
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def describe_versions() -> dict[str, str]:
    """Of what decides speed."""
    return {"star": __version__, "python": platform.python_version(), "torch": torch.__version__}


def _cpu_lines(key: str) -> list[str]:
    """Values of a key of the kernel's list of CPUs; none on other systems than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key]


# -- time -------------------------------------------------------------------------------------------------------------


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


@contextmanager
def threads_set(threads: int | None) -> Iterator[None]:
    """So many threads inside; as many as before when None."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _best_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Least of some calls, after one to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        start = now(device)
        call()
        seconds.append(now(device) - start)
    return min(seconds)


# -- ceilings ---------------------------------------------------------------------------------------------------------

Ceilings = dict[str, dict[str, float]]
"""See `measure_ceilings`."""


@torch.inference_mode()
def measure_ceilings(
    device: torch.device,
    products: list[tuple[int, int, int]],
    convolutions: list[tuple[int, int]],
    copy_bytes: int,
    repeats: int,
) -> Ceilings:
    """The machine's own rates, the best of all sizes and repeats.

    Args:
        device: where to measure.
        products: M, K, N of each matrix product, whose second factor lies as a linear layer's weight does.
        convolutions: C and h = w of each 3x3 convolution.
        copy_bytes: size of what is copied; beyond the caches, so that it is memory that is measured.
        repeats: of each.
    Returns:
        "gemm" by dtype, "convolution" by dtype, GFLOP/s; "copy": {"memory": GB/s, read and written bytes together}. A
        dtype that this machine does not offer is left out.
    """
    rates: Ceilings = {"gemm": {}, "convolution": {}, "copy": {}}
    for name, dtype in _DTYPES.items():
        if name == "float16" and device.type == "cpu":
            continue  # offered, and slower than any other
        rates["gemm"][name] = max(_product_rate(device, dtype, size, repeats) for size in products)
        rates["convolution"][name] = max(_convolution_rate(device, dtype, size, repeats) for size in convolutions)
    # on a CPU torch has fp8 for trials alone
    of_a_byte = {"int8": _int8_rate} | ({"fp8": _fp8_rate} if device.type == "cuda" else {})
    for name, measure in of_a_byte.items():
        if found := [rate for size in products if (rate := measure(device, size, repeats)) is not None]:
            rates["gemm"][name] = max(found)
    if device.type == "cpu" and has_int8_convolutions():
        rates["convolution"]["int8"] = max(_int8_convolution_rate(size, repeats) for size in convolutions)
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = _best_seconds(lambda: target.copy_(source), device, repeats)
    rates["copy"]["memory"] = 2 * source.numel() * 4 / seconds / GIGA
    return rates


def _product_rate(device: torch.device, dtype: torch.dtype, size: tuple[int, int, int], repeats: int) -> float:
    m, k, n = size
    rows, weight = (_random(*shape, device=device).to(dtype) for shape in ((m, k), (n, k)))
    calls = (lambda: F.linear(rows, weight), lambda: linear(rows, weight))  # of two libraries on a CPU
    return 2 * m * k * n / min(_best_seconds(call, device, repeats) for call in calls) / GIGA


def _int8_rate(device: torch.device, size: tuple[int, int, int], repeats: int) -> float | None:
    """None where torch has no such product for this device."""
    m, k, n = size
    rows, weight = (_random(*shape, device=device) for shape in ((m, k), (n, k)))
    if device.type == "cpu":
        if not has_int8_products():
            return None
        product = int8_product(weight)
        multiply, whole = product.multiply, rows.mul(10).clamp_(-NARROW, NARROW).to(product.takes)
    else:
        whole, weights = (each.mul(20).to(torch.int8) for each in (rows, weight))
        multiply = partial(torch._int_mm, mat2=weights.T)
    try:
        return 2 * m * k * n / _best_seconds(lambda: multiply(whole), device, repeats) / GIGA
    except (RuntimeError, AttributeError):  # not offered, or a size that it does not take
        return None


def _fp8_rate(device: torch.device, size: tuple[int, int, int], repeats: int) -> float | None:
    """A scale for each row of both factors; None where torch has no such product for this device."""
    m, k, n = size
    rows, weight = (_random(*shape, device=device).to(torch.float8_e4m3fn) for shape in ((m, k), (n, k)))
    scales = {"scale_a": torch.ones(m, 1, device=device), "scale_b": torch.ones(1, n, device=device)}
    multiply: Any = torch._scaled_mm
    call = partial(multiply, rows, weight.T, **scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    try:
        return 2 * m * k * n / _best_seconds(call, device, repeats) / GIGA
    except (RuntimeError, ValueError):  # not offered, or a size that it does not take
        return None


def _convolution_rate(device: torch.device, dtype: torch.dtype, size: tuple[int, int], repeats: int) -> float:
    x, weight = (each.to(dtype) for each in _map_and_kernel(size, device))
    return _convolution_flops(size) / _best_seconds(lambda: F.conv2d(x, weight, padding=1), device, repeats) / GIGA


def _int8_convolution_rate(size: tuple[int, int], repeats: int) -> float:
    """Of the convolution alone: rounding what goes in is work that nobody asked for."""
    cpu = torch.device("cpu")
    x, weight = _map_and_kernel(size, cpu)
    layer, rounded = Int8Convolution(weight, torch.zeros(len(weight))), round_map(x)
    seconds = _best_seconds(lambda: layer.convolve(*rounded, (1, 1), torch.bfloat16), cpu, repeats)
    return _convolution_flops(size) / seconds / GIGA


def _map_and_kernel(size: tuple[int, int], device: torch.device) -> Iterator[Tensor]:
    """(1, C, h, w) and (C, C, 3, 3), channels last."""
    channels, side = size
    for shape in ((1, channels, side, side), (channels, channels, 3, 3)):
        yield _random(*shape, device=device).contiguous(memory_format=torch.channels_last)


def _convolution_flops(size: tuple[int, int]) -> int:
    channels, side = size
    return 2 * 9 * channels**2 * side**2


def _random(*shape: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(device)


# -- floors -----------------------------------------------------------------------------------------------------------


def floor_seconds(cost: Cost, ceilings: Ceilings, dtype: str, weights: str | None = None) -> float:
    """Less than which this machine cannot need: its operations at the best rate, or its bytes at that of a copy.

    Args:
        cost: of a part.
        ceilings: from `measure_ceilings`.
        dtype: of blocks and decoder; at the rates of float32 where the ceilings leave it out.
        weights: dtype that rounded layers multiply in, such as "int8"; `dtype` when None.
    """
    gemm, convolution = ceilings["gemm"], ceilings["convolution"]
    if dtype not in gemm:
        dtype = "float32"
    rounded = weights or dtype
    linears = gemm.get(rounded, gemm[dtype])
    # a convolution is a product, too: whichever of the two the machine does faster
    decoder = max(convolution[dtype], gemm[dtype])
    rates: dict[Unit, float] = {
        "linears": linears,
        "blocks": gemm[dtype],
        "head": gemm["float32"],
        "convolutions": max(convolution[rounded], linears) if rounded in convolution else decoder,
        "decoder": decoder,
    }
    computing = sum(flops / rates[unit] for unit, flops in cost.work.items()) / GIGA
    return max(computing, cost.bytes / ceilings["copy"]["memory"] / GIGA)
