"""What the transformer is told about the picture.

Letters: B images, T text tokens, D width of the text features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextCondition:
    """Features of B prompts, float32.

    Args:
        pooled: one vector for the whole prompt, (B, D); becomes the 1x1 start map.
        states: one vector for each text token, (B, T, D); cross-attention looks at them.
        mask: True where a token belongs to the prompt, (B, T), bool.
    """

    pooled: Tensor
    states: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return self.pooled.shape[0]

    def to(self, device: torch.device | str) -> TextCondition:
        """The same features on another device."""
        return TextCondition(self.pooled.to(device), self.states.to(device), self.mask.to(device))

    def rows(self, index: Tensor | slice) -> TextCondition:
        """Some of the prompts, in the order of `index`."""
        return TextCondition(self.pooled[index], self.states[index], self.mask[index])

    @staticmethod
    def stack(first: TextCondition, second: TextCondition) -> TextCondition:
        """The prompts of `first`, then those of `second`."""
        return TextCondition(
            torch.cat([first.pooled, second.pooled]),
            torch.cat([first.states, second.states]),
            torch.cat([first.mask, second.mask]),
        )


@dataclass(frozen=True)
class ClassCondition:
    """Classes of B images.

    Args:
        labels: number of each class, (B,), int64; the number of classes stands for no class (VAR).
    """

    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device | str) -> ClassCondition:
        """The same classes on another device."""
        return ClassCondition(self.labels.to(device))

    def rows(self, index: Tensor | slice) -> ClassCondition:
        """Some of the classes, in the order of `index`."""
        return ClassCondition(self.labels[index])

    @staticmethod
    def stack(first: ClassCondition, second: ClassCondition) -> ClassCondition:
        """The classes of `first`, then those of `second`."""
        return ClassCondition(torch.cat([first.labels, second.labels]))


Condition = TextCondition | ClassCondition


def stack(first: Condition, second: Condition) -> Condition:
    """Two conditions of one kind, one after the other."""
    if isinstance(first, TextCondition) and isinstance(second, TextCondition):
        return TextCondition.stack(first, second)
    if isinstance(first, ClassCondition) and isinstance(second, ClassCondition):
        return ClassCondition.stack(first, second)
    raise TypeError("words and classes cannot be drawn together")
