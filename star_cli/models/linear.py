"""Linear layers, by whichever of torch's libraries does them faster.

On a CPU `F.linear` leaves float32 to MKL. oneDNN, which is there for bfloat16 and convolutions anyway, was faster at
every size of these models on an AMD EPYC with AVX-512: 1.1 to 1.25 times where there are hundreds of tokens, twice
where there are a few; and a GELU behind the layer costs next to nothing in it. Sums are added up in another order, so
results differ in their last bits. As with MKL, a row's last bits may depend on how many rows come with it; oneDNN's
did so less often.

Letters: I numbers in, O numbers out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_is_plain = ContextVar("_is_plain", default=False)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """`F.linear`, and a GELU (tanh) after it if asked for.

    Args:
        x: (..., I).
        weight: (O, I), in the dtype of x.
        bias: (O,).
        gelu: whether a GELU follows.
    Returns:
        (..., O).
    """
    if _suits_onednn(x, weight):
        activation, algorithm = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


@contextmanager
def plain_linear() -> Iterator[None]:
    """Inside, `linear` is `F.linear`: what others are compared with."""
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Is this a product that oneDNN takes: on a CPU, without gradients, autocast, or a tensor class of its own?"""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()  # the operator has no backward
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and x.dtype == weight.dtype
        and _has_onednn(x.dtype)
        and not torch.is_autocast_enabled("cpu")
        and not _is_plain.get()
    )


def _has_onednn(dtype: torch.dtype) -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
