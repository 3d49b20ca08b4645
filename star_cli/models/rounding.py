"""Weights of the blocks in one byte: which ways there are on a device, and the layers they are for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from star_cli.errors import OptionError
from star_cli.models.int8 import check_int8, round_layer
from star_cli.models.torchao_weights import check_torchao, round_by_torchao
from star_cli.models.transformer import StarTransformer

ROUNDINGS = ("int8", "fp8")
"""Their names: whole numbers, on a CPU or a GPU; floats of 8 bits, on a GPU that multiplies them."""
_LAYERS = (
    *("self_attention.qkv", "self_attention.out", "cross_attention.q", "cross_attention.out"),
    *("feed_forward.enter", "feed_forward.leave"),
)
"""What every token passes through. What is computed once a prompt (text keys and values, modulation) stays as it is."""


def check_rounding(rounding: str, device: torch.device, dtype: torch.dtype) -> None:
    """Is it there?

    Args:
        rounding: one of `ROUNDINGS`.
        device: where the blocks are.
        dtype: of the blocks.
    Raises:
        OptionError: not on this device, in this dtype, or without a package that is not installed.
    """
    if device.type == "cuda":
        check_torchao(rounding, device, dtype)
    elif rounding == "int8":
        check_int8(device, dtype)
    else:
        hint = "use --quantize none, or int8" if device.type == "cpu" else "use --quantize none"
        raise OptionError(f"fp8 is there on an NVIDIA GPU only, not on {device.type}", hint)


def round_blocks(transformer: StarTransformer, rounding: str) -> None:
    """Round the weights of the blocks, in place, as their device does it. The head, and all that follows it, stays.

    Raises:
        OptionError: see `check_rounding`.
    """
    device = transformer.start_position.device
    check_rounding(rounding, device, transformer.start_position.dtype)
    for layer in rounded_layers(transformer):
        if device.type == "cuda":
            round_by_torchao(layer, rounding)
        else:
            round_layer(layer)


def product_dtype(rounding: str | None, device: torch.device) -> str | None:
    """Name of the dtype in which rounded layers multiply; None: that of the blocks, for weights alone were rounded."""
    return None if rounding == "int8" and device.type == "cuda" else rounding


def rounded_layers(transformer: StarTransformer) -> Iterator[nn.Linear]:
    """Those whose weights a rounding is for."""
    for block in transformer.blocks:
        for name in _LAYERS:
            part, _, layer = name.partition(".")
            if (holder := getattr(block, part)) is not None:  # no cross-attention in a model that draws classes
                yield getattr(holder, layer)
