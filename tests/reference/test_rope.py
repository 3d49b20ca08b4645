"""The rotary table and the rotation equal the published ones."""

import torch

from star_cli.models.rope import rotate, rotation_table
from star_cli.models.schedule import ScaleSchedule
from tests.reference.golden import golden

TABLE, ROTATED = 1e-5, 2e-5


def test_rotary_tables_and_rotated_queries_and_keys():
    case = golden("rope")
    for values in case.facts["configurations"]:
        index, sides = values["index"], tuple(values["patch_nums"])
        schedule = ScaleSchedule(sides) if sides[-1] == max(sides) else None
        if schedule is None:  # one recorded table has its largest scale first; no model does, but each scale stands alone
            table = torch.cat([_table((side,), values) for side in sides])
        else:
            table = _table(sides, values)
        case.compare(f"{index}/table_re", table.real, TABLE)
        case.compare(f"{index}/table_im", table.imag, TABLE)
        if f"in/{index}/q" in case:
            case.compare(f"{index}/q", rotate(case[f"in/{index}/q"], table), ROTATED)
            case.compare(f"{index}/k", rotate(case[f"in/{index}/k"], table), ROTATED)


def _table(sides: tuple[int, ...], values: dict) -> torch.Tensor:
    return rotation_table(ScaleSchedule(sides), values["head_dim"], values["theta"], values["norm"])
