"""Low-rank adapters (Hu et al. 2021) through peft: big weights stay as they are, two thin matrices beside each learn.

The transformer reads some layers' weights instead of calling the layer, which peft's own layer would let pass by the
adapter. `AdaptedLinear` therefore gives the sum as its weight.

Letters: R rank.
"""

from __future__ import annotations

import re
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import OptionError
from star_cli.training.stage import Stage

ADAPTER = "default"


def add_adapters(stage: Stage, rank: int, alpha: float) -> None:
    """Put adapters beside all linear layers that learn in what the stage adapts; nothing else of it learns any more.

    Args:
        stage: whose `adapted` module is changed in place.
        rank: R.
        alpha: the adapters' part has a gain of alpha / R.
    Raises:
        OptionError: peft is missing, or the stage has nothing to adapt.
    """
    target = stage.adapted()
    if target is None:
        raise OptionError(f"stage {stage.name} takes no adapters", "set loop.lora_rank = 0")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise OptionError(
            "peft is not installed", "pip install 'star-cli[train]', or set loop.lora_rank = 0"
        ) from error
    names = [
        re.escape(name)
        for name, module in target.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    kind: Any = LoraConfig  # peft names the gain a whole number; it divides it by the rank, and any number does
    # one pattern for whole names: of a list, peft takes each for the end of a name
    config = kind(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules="|".join(names))
    config._register_custom_module({nn.Linear: _adapted_linear()})
    stage.requires_grad_(False)
    inject_adapter_in_model(config, target, adapter_name=ADAPTER)


def merge_adapters(stage: Stage) -> None:
    """Add every adapter to its layer's weight, and leave plain layers."""
    target = stage.adapted()
    if target is None:
        return
    for name, module in list(target.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        module.merge()
        parent, _, own = name.rpartition(".")
        setattr(target.get_submodule(parent), own, module.base_layer)


def _adapted_linear() -> Any:
    """A layer of peft whose weight is that of layer and adapter together."""
    from peft.tuners.lora import Linear

    class AdaptedLinear(Linear):
        @property
        def weight(self) -> Tensor:
            """(out, in)."""
            layer: Any = self.base_layer
            weight: Tensor = layer.weight
            if self.merged or self.disable_adapters:
                return weight
            return weight + self.get_delta_weight(ADAPTER)

        def forward(self, x: Tensor) -> Tensor:
            """(..., in) -> (..., out)."""
            layer: Any = self.base_layer
            return F.linear(x, self.weight, layer.bias)

    return AdaptedLinear
