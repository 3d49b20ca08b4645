"""Products of the blocks in int8, on a CPU: a scale for each token and each output, exact sums, floats around them.

Weights are rounded once, to the nearest of 255 steps of each output's largest; activations as they come, each token by
its own largest (how finely: `int8_products.py`). A product therefore does not depend on the rows beside it. A picture
still may: attention and norms round in their last bits by the size of a batch, and such a bit can tip a rounding to
int8.

Letters: l rows (tokens of all images), I numbers in, O numbers out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import OptionError
from star_cli.models.int8_products import Int8Product, has_int8_products, int8_product

_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]


class Int8Weight(Tensor):
    """Stands for the weight (O, I) of a linear layer whose products are int8; of its shape, and of the dtype it had.

    A `Tensor` and no layer of its own, for the attention joins the weights of its layers with other biases. The numbers
    are with the product, in the order that it wants; to all but `F.linear` this is a tensor without any.
    """

    product: Int8Product
    """Holds the numbers."""
    told: torch.dtype
    """What it says its dtype is: that of what goes in and comes out."""

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Round a float32 or bfloat16 weight (O, I)."""
        kept = torch.zeros((), dtype=torch.int8).expand(weight.shape).as_subclass(cls)
        kept.product, kept.told = int8_product(weight.detach().float()), weight.dtype
        return kept

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """`F.linear` in int8, the dtype as told, all else as for any tensor."""
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func == _DTYPE:
            return args[0].told
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def check_int8(device: torch.device, dtype: torch.dtype) -> None:
    """Is int8 there?

    Raises:
        OptionError: not on a CPU, float16, or this CPU does not add up int8 products exactly.
    """
    if device.type != "cpu":
        raise OptionError(f"int8 is there on a CPU or an NVIDIA GPU, not on {device.type}", "leave out --quantize")
    if dtype not in (torch.float32, torch.bfloat16):
        raise OptionError("int8 goes with float32 and bfloat16 alone", "leave out --dtype")
    if not has_int8_products():
        raise OptionError("this processor does not add up int8 products exactly", "leave out --quantize")


def round_layer(layer: nn.Linear) -> None:
    """Round the weight of a float32 or bfloat16 layer, in place; `check_int8` says whether it can be multiplied."""
    weight = Int8Weight.of(layer.weight)
    del layer.weight
    layer.register_buffer("weight", weight)


def _linear(x: Tensor, weight: Int8Weight, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, (..., I) -> (..., O) in the dtype of x; float32 between."""
    rows = x.flatten(0, -2)
    out = rows.new_empty(len(rows), weight.shape[0])
    at_once = max(1, weight.product.at_once // max(weight.shape))
    for part, result in zip(rows.split(at_once), out.split(at_once), strict=True):
        own = result if result.dtype == torch.float32 else torch.empty_like(result, dtype=torch.float32)
        weight.product(part.float(), own)
        if bias is not None:
            own.add_(bias)
        if own is not result:
            result.copy_(own)
    return out.unflatten(0, x.shape[:-1])
