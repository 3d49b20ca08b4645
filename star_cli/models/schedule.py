"""The scale schedule: the sides of the token maps, and everything that follows from them.

Letters: L tokens of the whole schedule, l tokens of one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from star_cli.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ScaleSchedule:
    """Side of each token map, from the 1x1 start map to the full latent (VAR, section 3.1).

    Raises:
        OptionError: no side, one that is no whole number of at least 1, or a last side that is not the largest.
    """

    sides: tuple[int, ...]
    first_level: int = 0
    """Row of the level embedding for the first scale: a model that draws several resolutions keeps rows for each."""

    def __post_init__(self) -> None:
        if not all(type(number) is int for number in (*self.sides, self.first_level)):
            raise OptionError(
                f"sides and first level of a schedule are whole numbers, not {list(self.sides)}, {self.first_level}"
            )
        if not self.sides or min(self.sides) < 1:
            raise OptionError(f"a scale schedule needs sides of at least 1, not {list(self.sides)}")
        if self.sides[-1] != max(self.sides):
            raise OptionError(f"the last side of a scale schedule must be its largest: {list(self.sides)}")

    def __len__(self) -> int:
        return len(self.sides)

    @property
    def last_side(self) -> int:
        """Side of the full latent, in tokens."""
        return self.sides[-1]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each scale: side squared."""
        return tuple(side * side for side in self.sides)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each scale starts among all tokens; one longer than the schedule, ends with L."""
        return (0, *accumulate(self.sizes))

    @property
    def length(self) -> int:
        """L, tokens of all scales together."""
        return self.offsets[-1]

    def slice(self, scale: int) -> slice:
        """Where the tokens of one scale stand among all L."""
        return slice(self.offsets[scale], self.offsets[scale + 1])

    def prefix(self, scales: int) -> ScaleSchedule:
        """The first `scales` scales alone."""
        return ScaleSchedule(self.sides[:scales], self.first_level)

    def progress(self, scale: int) -> float:
        """How far along a scale is: 0 for the first, 1 for the last (0 when there is only one)."""
        return scale / max(len(self) - 1, 1)

    def levels(self) -> Tensor:
        """Row of the level embedding of each token, (L,), int64."""
        import torch

        return torch.repeat_interleave(torch.arange(len(self)) + self.first_level, torch.tensor(self.sizes))

    def block_causal_mask(self) -> Tensor:
        """(L, L), True where the row's token may look at the column's: its own scale and earlier ones."""
        levels = self.levels()
        return levels[:, None] >= levels[None, :]
