"""The moving average of the weights: what a stage gives in the end, and what previews are drawn with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Averages of a module's parameters by name; of none when the decay is 0.

    Args:
        module: whose parameters are followed.
        decay: of the average, at least 0 and below 1.
        learned_only: leave out parameters without gradient. Otherwise they are averaged too: a codebook, for one, moves
            without gradients.
    """

    def __init__(self, module: nn.Module, decay: float, learned_only: bool = False):
        self.decay = decay
        self.followed = {
            key: value
            for key, value in module.named_parameters()
            if decay and (value.requires_grad or not learned_only)
        }
        self.values = {key: value.detach().clone() for key, value in self.followed.items()}

    @torch.no_grad()
    def update(self, step: int, anew: Sequence[nn.Parameter] = ()) -> None:
        """Move towards the weights after the step of this number; begin again where the step replaced them."""
        decay = min(self.decay, (1 + step) / (10 + step))  # follows fast while little is known
        if self.values:
            torch._foreach_lerp_(list(self.values.values()), list(self.followed.values()), 1 - decay)
        replaced = {id(parameter) for parameter in anew}
        for key, value in self.followed.items():
            if id(value) in replaced:
                self.values[key].copy_(value)

    @torch.no_grad()
    def put(self) -> None:
        """Give the module the averages as its weights."""
        for key, value in self.values.items():
            self.followed[key].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages as the module's weights for a while."""
        current = {key: value.detach().clone() for key, value in self.followed.items()}
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for key, value in current.items():
                    self.followed[key].copy_(value)

    def load(self, values: dict[str, Tensor]) -> None:
        """Go on from the averages of a checkpoint.

        Raises:
            ValueError: they are of other parameters.
        """
        if set(values) != set(self.values):
            raise ValueError("the moving average is of other parameters")
        for key, value in values.items():
            self.values[key].copy_(value)
