"""Moving a model to another schedule, as the published models went from 256 to 512 and 1024 px (STAR).

Rotary positions carry over by themselves; level rows and learned positions are kept by their index, and further ones
begin anew, or take the level rows of the scales most like them.

Letters: L tokens of the schedule, C width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from star_cli.errors import OptionError
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer

LevelRule = Literal["nearest_side", "nearest_normalised", "published"]
"""Which trained row a scale of another schedule begins with. "nearest_side": that of the scale whose side is nearest.
"nearest_normalised": that of the scale whose side, as a share of the last one, is nearest; so the last scale begins as
the last. "published": that of the same index; scales beyond begin anew."""


def lengthen(rows: Tensor, count: int, generator: torch.Generator, repeat_last: bool = False) -> Tensor:
    """The rows of an embedding, and further ones.

    Args:
        rows: (n, C).
        count: rows wanted, at least n.
        generator: of the further rows: normal, standard deviation sqrt(1 / 3C), as at the start of training.
        repeat_last: repeat the last row instead.
    Returns:
        (count, C); the first n rows are those given.
    Raises:
        OptionError: fewer rows are wanted than there are.
    """
    more = count - len(rows)
    if more < 0:
        raise OptionError(f"{len(rows)} rows cannot become {count}: a schedule only grows")
    if repeat_last:
        return torch.cat([rows, rows[-1:].expand(more, -1)])
    std = (1 / rows.shape[1] / 3) ** 0.5
    fresh = nn.init.trunc_normal_(torch.empty(more, rows.shape[1]), std=std, generator=generator)
    return torch.cat([rows, fresh.to(rows)])


@torch.no_grad()
def move_to_schedule(
    transformer: StarTransformer, target: ScaleSchedule, generator: torch.Generator
) -> StarTransformer:
    """A model with the same weights that knows a longer schedule too.

    Level rows are kept by index, learned positions by their place among all tokens, whatever scale that now is: the
    published rule. Where modulation comes from the levels the last level row is repeated, else further rows are random.

    Args:
        transformer: is left as it was.
        target: the longer schedule.
        generator: of the new rows; the same for every caller with the same seed.
    Raises:
        OptionError: the schedule has fewer levels, or fewer positions, than the model.
    """
    config = transformer.config
    is_learned = config.position == "learned"
    longer_config = replace(
        config,
        levels=target.first_level + len(target),
        learned_positions=target.length if is_learned else config.learned_positions,
    )
    state = dict(transformer.state_dict())
    repeat_last = config.modulation == "level"
    for name in ("level_embedding.weight", "stable.level_embedding.weight"):
        if name in state:
            state[name] = lengthen(state[name], longer_config.levels, generator, repeat_last)
    if is_learned:
        positions = state["position_embedding"][0]  # (L, C)
        state["position_embedding"] = lengthen(positions, longer_config.learned_positions, generator)[None]
    with torch.device("meta"):
        longer = StarTransformer(longer_config)
    longer.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, strict=True, assign=True)
    return longer


@torch.no_grad()
def copy_levels(
    transformer: StarTransformer,
    source: ScaleSchedule,
    target: ScaleSchedule,
    rule: LevelRule = "nearest_side",
    generator: torch.Generator | None = None,
) -> None:
    """Fill the level rows of a schedule from those of a trained one, in place; the stable head's rows too.

    Args:
        transformer: has rows for both schedules (`move_to_schedule` makes room); the two may share rows.
        source: the trained schedule.
        target: the schedule whose rows are written.
        rule: which row each scale takes.
        generator: of the rows that begin anew under "published"; seeded with 0 when None.
    Raises:
        OptionError: the transformer has too few rows, or "published" meets a schedule of fewer scales.
    """
    config = transformer.config
    if max(schedule.first_level + len(schedule) for schedule in (source, target)) > config.levels:
        raise OptionError(f"{config.levels} level rows are too few for these schedules")
    generator = generator or torch.Generator().manual_seed(0)
    tables = [transformer.level_embedding, *([transformer.stable.level_embedding] if transformer.stable else [])]
    for table in tables:
        known = table.weight[source.first_level : source.first_level + len(source)].clone()
        if rule == "published":
            rows = lengthen(known, len(target), generator, config.modulation == "level")
        else:
            rows = known[nearest_scales(source, target, rule == "nearest_normalised")]
        table.weight[target.first_level : target.first_level + len(target)] = rows


def nearest_scales(source: ScaleSchedule, target: ScaleSchedule, is_normalised: bool) -> list[int]:
    """Scale of `source` nearest in side to each scale of `target`, the smaller when two are equally near.

    Normalised sides are shares of their schedule's last one.
    """
    # sides times the other's last side compare as the shares do, without rounding
    from_factor, to_factor = (target.last_side, source.last_side) if is_normalised else (1, 1)
    return [
        min(range(len(source)), key=lambda known: abs(source.sides[known] * from_factor - side * to_factor))
        for side in target.sides
    ]
