"""What this CPU multiplies by itself, as torch tells it; fixed for a process, so that pictures may go by it."""

from __future__ import annotations

import torch

NOT_THERE = (RuntimeError, AttributeError, TypeError)
"""What torch raises for an operator that this processor, or this torch, does not have, or has otherwise."""


def lacks_avx512() -> bool:
    """Is it an x86 processor with AVX2 and no more? Their libraries are fast at other sizes."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def has_bfloat16() -> bool:
    """Does it multiply bfloat16? Torch's way around it is slow: of hundreds of rows 8 times as slow as float32."""
    return not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
