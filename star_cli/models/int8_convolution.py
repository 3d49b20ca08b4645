"""Convolutions of the decoder in int8, on a CPU: exact sums of whole numbers, floats around them.

Weights are rounded once, to the nearest of 255 steps of each output's largest; what goes in as it comes, a strip at a
time, to 255 steps from its least to its largest value. Zero is one of them, so that the picture's edge stays what it
was.

Letters: C channels in, O channels out, h w rows and columns.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.models.convolution import Convolution
from star_cli.models.int8_products import round_rows
from star_cli.models.processor import NOT_THERE

_STEPS = 254  # between the least and the largest value: adding half a step for rounding cannot leave a byte
_ONES = [1, 1]


class Int8Convolution(Convolution):
    """Its products run in int8.

    Args:
        weight: (O, C, k, k), float32 or bfloat16.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        values, steps = round_rows(weight.detach().float().flatten(1))
        self._scales = steps[:, 0]
        self._zeros = torch.zeros(len(weight), dtype=torch.int)
        self._bias = bias.detach().float()
        # Packed for any step and zero of what goes in: those given here say only that there is a zero.
        kernel = values.view(weight.shape)
        self._packed = torch.ops.onednn.qconv_prepack(kernel, self._scales, 1.0, 1, _ONES, _ONES, _ONES, 1, None)

    def __call__(self, strip: Tensor, padding: tuple[int, int]) -> Tensor:
        """See `Convolution`; in the dtype of the strip."""
        return self.convolve(*round_map(strip), padding, strip.dtype)

    def convolve(self, codes: Tensor, step: float, zero: int, padding: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The same for what `round_map` gave."""
        return torch.ops.onednn.qconv2d_pointwise(
            *(codes, step, zero, self._packed, self._scales, self._zeros, self._bias),
            *(_ONES, list(padding), _ONES, 1, 1.0, 0, dtype, "none", [], ""),
        )


def round_map(x: Tensor) -> tuple[Tensor, float, int]:
    """Round to 255 steps from the least to the largest value, of which one is zero.

    Returns:
        Whole numbers, uint8, in the layout of x; what one step is worth; the number that stands for zero.
    """
    least, largest = (float(bound) for bound in x.aminmax())
    step = max(max(largest, 0.0) - min(least, 0.0), torch.finfo(torch.float32).tiny * _STEPS) / _STEPS
    zero = round(-min(least, 0.0) / step)
    shift = torch.tensor([zero + 0.5])  # one dimension, so that bfloat16 is added up in float32
    return torch.add(shift, x, alpha=1 / step).to(torch.uint8), step, zero


@cache
def has_int8_convolutions() -> bool:
    """Does torch have them for this processor, and are they right up to rounding?"""
    x = torch.arange(-100.0, 156.0).view(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.arange(-72.0, 72.0).view(4, 4, 3, 3), torch.arange(4.0)
    try:
        made = Int8Convolution(weight, bias)(x, (1, 1))
    except NOT_THERE:
        return False
    true = F.conv2d(x, weight, bias, padding=1)
    return bool(((made - true).abs() <= 0.02 * true.abs().max()).all())
