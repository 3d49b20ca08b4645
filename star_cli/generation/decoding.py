"""From the tokens of one image to its pixels, by the decoder that suits the device.

One image at a time: the last bits of a batch's depend on its size, and the decoder's activations are the peak of the
memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from star_cli.models.float32 import exact_float32
from star_cli.models.int8_convolution import Int8Convolution, has_int8_convolutions
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.strips import StripDecoder
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.models.winograd import fewest_multiplications


class TokenDecoder:
    """A VQVAE as drawing uses it.

    Args:
        vqvae: in its dtype, on its device.
        is_rounded: on a CPU, convolve in int8 where torch can.
    """

    def __init__(self, vqvae: MultiScaleVQVAE, is_rounded: bool = False):
        self.vqvae = vqvae
        self.is_rounded = is_rounded

    @torch.inference_mode()
    def f_hat(self, token_maps: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """Final f_hat (1, C, h, w) of token maps (side, side)."""
        tokens = [token_map.flatten()[None] for token_map in token_maps]  # (1, l) of each scale
        with exact_float32(tokens[0].device):
            return self.vqvae.quantizer.decode_tokens(tokens, schedule)

    @torch.inference_mode()
    def pixels(self, f_hat: Tensor) -> Tensor:
        """(1, C, h, w) -> (3, H, W), float32 in -1..1, on the device of f_hat."""
        decode = self._in_strips if f_hat.device.type == "cpu" else self.vqvae.decode
        with exact_float32(f_hat.device):
            return decode(f_hat)[0]

    @property
    def is_in_int8(self) -> bool:
        """Whether it convolves in int8 indeed."""
        on_cpu = self.vqvae.after_quantizer.weight.device.type == "cpu"
        return self.is_rounded and on_cpu and has_int8_convolutions()

    @cached_property
    def _in_strips(self) -> StripDecoder:
        return StripDecoder(self.vqvae, convolution=Int8Convolution if self.is_in_int8 else fewest_multiplications)
