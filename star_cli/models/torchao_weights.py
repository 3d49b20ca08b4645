"""Weights of linear layers in one byte on a GPU, by torchao (`pip install 'star-cli[gpu]'`).

- int8: weights alone, a scale for each output; products are of the activations' dtype. Half the memory of bfloat16.
- fp8: activations, too (float8_e4m3fn), a scale for each token; products of 8 bits, on GPUs that have them.

torchao does both on a CPU, too, slowly: that is where they are tested.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from star_cli.errors import OptionError

_FP8_FROM = (8, 9)
"""Compute capability from which a GPU multiplies 8-bit floats: Ada, Hopper."""


def check_torchao(rounding: str, device: torch.device, dtype: torch.dtype) -> None:
    """Is a rounding there on a GPU?

    Args:
        rounding: "int8" or "fp8".
        device: the GPU.
        dtype: of the layers.
    Raises:
        OptionError: torchao is not installed, the dtype does not go with the rounding, or the GPU does not have fp8.
    """
    if find_spec("torchao") is None:
        raise _without_torchao("which is not installed")
    if rounding == "int8" and dtype == torch.float16:  # sums of whole numbers, scaled afterwards, overflow it
        raise OptionError("int8 goes with float32 and bfloat16 alone", "use --dtype float32")
    if rounding == "fp8":
        # torch calls an AMD GPU cuda, too, and numbers it otherwise
        if torch.version.hip is not None or torch.cuda.get_device_capability(device) < _FP8_FROM:
            raise OptionError("this GPU does not multiply 8-bit floats", "use --quantize int8, or none")
        if dtype != torch.bfloat16:
            raise OptionError("fp8 goes with bfloat16 alone", "use --dtype bfloat16")


def round_by_torchao(layer: nn.Linear, rounding: str) -> None:
    """Round a layer's weight in place; it goes on saying that its dtype is the one it had.

    Raises:
        OptionError: a weight whose shape such products do not take; another torchao than is needed.
    """
    try:
        with _silent("torch.utils._pytree"):
            from torchao.quantization import (
                Float8DynamicActivationFloat8WeightConfig,
                Int8WeightOnlyConfig,
                PerRow,
                quantize_,
            )
    except ImportError as error:
        raise _without_torchao(f"0.18 or newer: {error}") from error
    unrounded = type(layer.weight)
    # the settings of torch's compiler are the whole process's: they stay as they are
    if rounding == "fp8":
        quantize_(layer, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False))
    else:
        quantize_(layer, Int8WeightOnlyConfig(set_inductor_config=False))
    if type(layer.weight) is unrounded:  # torchao passes over what it cannot do
        shape = tuple(layer.weight.shape)
        raise OptionError(f"{rounding} cannot multiply weights of shape {shape}", "use --quantize none")


def _without_torchao(why: str) -> OptionError:
    hint = "pip install 'star-cli[gpu]', or use --quantize none"
    return OptionError(f"--quantize on a GPU needs torchao, {why}", hint)


@contextmanager
def _silent(logger: str) -> Iterator[None]:
    """A library's log says at every import what its developers should change."""
    said, before = logging.getLogger(logger), logging.getLogger(logger).disabled
    said.disabled = True
    try:
        yield
    finally:
        said.disabled = before
