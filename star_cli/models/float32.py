"""Float32 for what decides tokens, whatever surrounds it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32(device: torch.device | str) -> Iterator[None]:
    """Float32 that is float32: no autocast, and on CUDA no TF32, which convolutions use unless told otherwise.

    A token is the nearest of thousands of codes: with 10 bits instead of 23 the cache of one machine would hold other
    tokens than the pixels give on another.
    """
    kind = torch.device(device).type
    with torch.autocast(kind, enabled=False):
        if kind != "cuda":
            yield
            return
        switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]  # it has
        before = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, precision in zip(switches, before, strict=True):
                switch.fp32_precision = precision
