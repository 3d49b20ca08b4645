"""The rotary table and the rotation equal the published ones."""

from __future__ import annotations

from typing import Any

import torch

from star_cli.models.rope import rotate, rotation_table
from star_cli.models.schedule import ScaleSchedule
from tests.reference.golden import golden


def test_rotary_tables_and_rotated_queries_and_keys() -> None:
    case = golden("rope")
    for values in case.facts["configurations"]:
        index = values["index"]
        table = _table(values)
        case.compare(f"{index}/table_re", table[..., 0], "rotary")
        case.compare(f"{index}/table_im", table[..., 1], "rotary")
        if f"in/{index}/q" in case:
            case.compare(f"{index}/q", rotate(case[f"in/{index}/q"], table), "rotary")
            case.compare(f"{index}/k", rotate(case[f"in/{index}/k"], table), "rotary")
    case.finish()


def _table(values: dict[str, Any]) -> torch.Tensor:
    # scale by scale: one recorded table has its largest scale first, which no schedule of a model may have
    schedules = [ScaleSchedule((side,)) for side in values["patch_nums"]]
    if values["patch_nums"][-1] == max(values["patch_nums"]):
        schedules = [ScaleSchedule(tuple(values["patch_nums"]))]
    return torch.cat([rotation_table(one, values["head_dim"], values["theta"], values["norm"]) for one in schedules])
