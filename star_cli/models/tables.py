"""What follows from the schedule alone: fixed positions and the block-causal mask, each made once and kept.

Letters: L tokens of the schedule, C width, P rotated pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from star_cli.models.config import TransformerConfig
from star_cli.models.flex import SMALLEST_HEAD, FlexMask
from star_cli.models.rope import rotation_table
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.sincos import sincos_table

Key = tuple[ScaleSchedule, torch.device]


class ScheduleTables:
    """Tables of one transformer, for every schedule and device it meets. Plain tensors: no part of its state."""

    def __init__(self, config: TransformerConfig):
        self.config = config
        self._positions: dict[Key, Tensor] = {}
        self._levels: dict[Key, Tensor] = {}
        self._masks: dict[Key, Tensor] = {}
        self._flex_masks: dict[Key, FlexMask] = {}

    def levels(self, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        """Row of the level embedding of each token, (L,), int64."""
        return _kept(self._levels, (schedule, device), schedule.levels)

    def rotation(self, schedule: ScaleSchedule, device: torch.device) -> Tensor | None:
        """Rotary table of all L tokens, (L, P, 2), see `rotation_table`; None with other positions."""
        if self.config.position != "rope":
            return None
        return self._by_position((schedule, device), rotation_table, self.config.head_width)

    def sincos(self, schedule: ScaleSchedule, device: torch.device) -> Tensor:
        """Sines and cosines of all L tokens, (L, C)."""
        return self._by_position((schedule, device), sincos_table, self.config.width)

    def _by_position(self, key: Key, table: Callable[[ScaleSchedule, int, float, float], Tensor], width: int) -> Tensor:
        theta, norm = self.config.rope_theta, self.config.rope_norm
        return _kept(self._positions, key, lambda: table(key[0], width, theta, norm))

    def training_mask(
        self, schedule: ScaleSchedule, tokens: slice | Tensor, device: torch.device, flex: bool
    ) -> Tensor | FlexMask:
        """The block-causal mask among some of the L tokens.

        Args:
            schedule: all scales.
            tokens: those that take part; a tensor of indices differs from step to step, so its mask is not kept.
            device: where attention runs.
            flex: in flex attention's form, where that can run: on a GPU, with heads wide enough.
        """
        if not (flex and device.type == "cuda" and self.config.head_width >= SMALLEST_HEAD):
            whole = _kept(self._masks, (schedule, device), schedule.block_causal_mask)  # (L, L), of 1024 px 89 MB
            return whole[tokens][:, tokens]
        if isinstance(tokens, Tensor):
            return FlexMask.of_levels(self.levels(schedule, device)[tokens])
        key = (schedule, device)
        if key not in self._flex_masks:
            self._flex_masks[key] = FlexMask.of_levels(self.levels(schedule, device)[tokens])
        return self._flex_masks[key]


def _kept(tables: dict[Key, Tensor], key: Key, make: Callable[[], Tensor]) -> Tensor:
    """The table of a schedule on a device, made when it is asked for first."""
    if key not in tables:
        with torch.inference_mode(False):  # a table first made while drawing must serve training too
            tables[key] = make().to(key[1])
    return tables[key]
