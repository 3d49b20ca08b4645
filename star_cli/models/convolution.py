"""What convolves a strip of a picture: the seam between the decoder's strips and the ways to multiply.

Letters: C channels in, O channels out, k side of the kernel, x columns of a strip.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


class Convolution(ABC):
    """A convolution of stride 1 whose weights are ready for it."""

    @abstractmethod
    def __call__(self, strip: Tensor, padding: tuple[int, int]) -> Tensor:
        """(1, C, rows, x) -> (1, O, rows', x'), channels last, zeros beyond the edges.

        Args:
            strip: channels last.
            padding: rows of zeros above and below, columns left and right.
        """

    def write(
        self, strip: Tensor, padding: tuple[int, int], place: Tensor, *, after_silu: bool = False, adds: bool = False
    ) -> None:
        """Write the same to a place, or add it to what stands there.

        Args:
            strip: as above; may be overwritten where a SiLU comes first.
            padding: as above.
            place: (1, O, rows', x'), channels last, such as rows of a map; not of the strip's memory.
            after_silu: whether the SiLU of the strip is what is convolved.
            adds: whether it is added.
        """
        made = self(F.silu(strip, inplace=True) if after_silu else strip, padding)
        if adds:
            place.add_(made)
        else:
            place.copy_(made)

    def fitting(self, rows: int) -> int:
        """How many of a map's next so many rows a strip had best be of, at least 1; it has one more above and below."""
        return rows


MakeConvolution = Callable[[Tensor, Tensor], Convolution]
"""From weight (O, C, k, k) and bias (O,)."""


class PlainConvolution(Convolution):
    """As torch does it, in the dtype of its weight."""

    def __init__(self, weight: Tensor, bias: Tensor):
        self._weight, self._bias = weight, bias

    def __call__(self, strip: Tensor, padding: tuple[int, int]) -> Tensor:
        """See `Convolution`."""
        return F.conv2d(strip, self._weight, self._bias, padding=padding)


class WidenedConvolution(Convolution):
    """Another one, in float32, for strips of fewer bits."""

    def __init__(self, inner: Convolution):
        self._inner = inner

    def __call__(self, strip: Tensor, padding: tuple[int, int]) -> Tensor:
        """See `Convolution`."""
        return self._inner(strip.float(), padding).to(strip.dtype)

    def fitting(self, rows: int) -> int:
        """See `Convolution`."""
        return self._inner.fitting(rows)
