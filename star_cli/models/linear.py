"""Linear layers, by whichever of torch's libraries does them faster.

On a CPU `F.linear` leaves float32 to MKL. oneDNN, which is there for bfloat16 and convolutions anyway, was faster at
every size of these models on an AMD EPYC with AVX-512: 1.1 to 1.25 times where there are hundreds of tokens, twice
where there are a few; and a GELU behind the layer costs next to nothing in it. On one with AVX2 alone it was faster
with a few tokens only (8: 1.7 times), slower with hundreds (0.8 times), and its GELU cost three times torch's. A CPU
without bfloat16 multiplies it in float32. Sums are added up in another order, so results differ in their last bits. As
with MKL, a row's last bits may depend on how many rows come with it; oneDNN's did so less often.

Letters: I numbers in, O numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.models.processor import has_bfloat16, lacks_avx512

FEW_TOKENS = 64
"""Up to so many oneDNN is the faster one without AVX-512, too. Of one picture: its tokens must not go by its batch."""
_GELU_NUMBERS = 2**17
"""Worked on at a time, so that what lies between the steps stays in the cache."""
# GELU (tanh) is x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3), for 1 + tanh(u) = 2 sigmoid(2 u)
_SLOPE = 2 * math.sqrt(2 / math.pi)
_CUBE = 0.044715 * _SLOPE

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
    if not _is_free(x, weight):
        return _gelu(F.linear(x, weight, bias)) if gelu else F.linear(x, weight, bias)
    if x.dtype == torch.bfloat16 and not has_bfloat16():
        return linear(x.float(), weight.float(), None if bias is None else bias.float(), gelu).to(x.dtype)
    is_old = lacks_avx512()
    if not _has_onednn(x.dtype) or (is_old and x.ndim > 1 and x.shape[-2] > FEW_TOKENS):
        return _gelu_of(x, weight, bias) if gelu else F.linear(x, weight, bias)
    if gelu and not is_old:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "tanh")
    out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return _gelu(out) if gelu else out


def _gelu_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU (tanh) of a linear layer whose bias, in float32, comes with the GELU, piece by piece.

    `F.linear` would write it everywhere before it begins.
    """
    if bias is None or x.dtype != torch.float32 or bias.dtype != x.dtype:
        return _gelu(F.linear(x, weight, bias))
    return _gelu_in_place(F.linear(x, weight), bias)


def _gelu(x: Tensor) -> Tensor:
    """GELU (tanh) of a tensor that nobody else has."""
    return _gelu_in_place(x) if x.dtype == torch.float32 and _is_free(x) else F.gelu(x, approximate="tanh")


def _gelu_in_place(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU (tanh) of x + bias, written over x; 2.6 times as fast as `F.gelu` with AVX2, whose tanh is slow."""
    slope = x.new_tensor(_SLOPE)
    for part in x.view(-1, x.shape[-1]).split(max(1, _GELU_NUMBERS // x.shape[-1])):
        if bias is not None:
            part.add_(bias)
        gate = torch.addcmul(slope, part, part, value=_CUBE).mul_(part).sigmoid_()
        part.mul_(gate)
    return x


@contextmanager
def plain_linear() -> Iterator[None]:
    """Inside, `linear` is `F.linear`: what others are compared with."""
    token = _is_plain.set(True)
    try:
        yield
    finally:
        _is_plain.reset(token)


def _is_free(*given: Tensor) -> bool:
    """May the way be chosen here: on a CPU, without gradients, autocast or classes of tensors, not the plain one?"""
    return (
        all(type(each) in (Tensor, nn.Parameter) and each.device.type == "cpu" for each in given)
        and len({each.dtype for each in given}) == 1
        and not torch.is_grad_enabled()  # oneDNN's operator has no backward
        and not torch.is_autocast_enabled("cpu")
        and not _is_plain.get()
    )


def _has_onednn(dtype: torch.dtype) -> bool:
    is_there = bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    return is_there and dtype in (torch.float32, torch.bfloat16)
