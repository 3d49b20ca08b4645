"""What an official file of a model must hold, and the way from our keys and shapes back to it, by `layouts.py`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from star_cli.checkpoints.layouts import RESHAPES, Row, layout_of, pattern_of
from star_cli.checkpoints.tensors import outline_of
from star_cli.errors import ModelFolderError
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule

REFILLS: dict[str, Callable[[Any, ScaleSchedule, Tensor], Tensor]] = {  # config, schedule, the tensor it stands beside
    "zeros": lambda config, schedule, beside: torch.zeros(beside.shape),
    "levels": lambda config, schedule, beside: schedule.levels()[None],  # (1, L), int64
    "mask": lambda config, schedule, beside: _attention_bias(schedule),
    "class rows": lambda config, schedule, beside: torch.zeros(config.classes + 1, config.width),
    "code use": lambda config, schedule, beside: torch.zeros(len(schedule), config.codebook_size),
}


@dataclass(frozen=True)
class Place:
    """Where the tensor of one official key belongs, and what it must look like there."""

    row: Row
    ours: str | None
    """Our key; None when the tensor is left out."""
    shape: tuple[int, ...]
    """In the official file."""
    refill: Tensor | None = None
    """What to write for a left-out tensor that no folder kept, and what an official file must hold unless `kept`."""

    def to_ours(self, tensor: Tensor) -> Tensor:
        """An official tensor in our shape."""
        return RESHAPES[self.row.shape][0](tensor) if self.row.shape else tensor

    def to_official(self, tensor: Tensor) -> Tensor:
        """Our tensor in the official shape."""
        return RESHAPES[self.row.shape][1](tensor) if self.row.shape else tensor


def to_official(
    state: Mapping[str, Tensor],
    config: TransformerConfig | VQVAEConfig,
    schedule: ScaleSchedule,
    kept: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """An official state dict for ours, left-out tensors included.

    Args:
        state: all of our tensors, float32; what comes back shares their memory.
        config: of the model.
        schedule: of the only resolution the official code builds this model for.
        kept: left-out tensors by their official keys, where they are known; the others are derived or zero.
    """
    official = {}
    for key, place in official_places(config, schedule).items():
        if place.ours is not None:
            official[key] = place.to_official(state[place.ours])
        elif kept is not None and key in kept:
            official[key] = kept[key]
        elif place.refill is not None:
            official[key] = place.refill
    return official


def official_places(config: TransformerConfig | VQVAEConfig, schedule: ScaleSchedule) -> dict[str, Place]:
    """Every key that the official file of such a model holds.

    Raises:
        ModelFolderError: a tensor of ours that no row of the layout knows.
    """
    layout = layout_of(config)
    mapped = [(row, pattern_of(row.ours)) for row in layout if row.ours is not None]
    left_out = [(row, pattern_of(row.beside)) for row in layout if row.beside is not None]
    places: dict[str, Place] = {}
    for name, tensor in outline_of(config).items():
        key, row = _official_key(name, mapped)
        shape = RESHAPES[row.shape][1](tensor).shape if row.shape else tensor.shape
        places[key] = Place(row, name, tuple(shape))
        for row, pattern in left_out:
            if (match := pattern.fullmatch(name)) and row.refill is not None:
                refill = REFILLS[row.refill](config, schedule, tensor)
                places[row.official.format(**match.groupdict())] = Place(row, None, tuple(refill.shape), refill)
    return places


def _official_key(ours: str, rows: Iterable[tuple[Row, re.Pattern[str]]]) -> tuple[str, Row]:
    for row, pattern in rows:
        if match := pattern.fullmatch(ours):
            return row.official.format(**match.groupdict()), row
    raise ModelFolderError(f"{ours} has no place in the official layout", "only models of the published kinds have one")


def _attention_bias(schedule: ScaleSchedule) -> Tensor:
    """(1, 1, L, L): 0 where a token may look, minus infinity elsewhere."""
    return torch.zeros(schedule.length, schedule.length).masked_fill_(~schedule.block_causal_mask(), -torch.inf)[
        None, None
    ]
