"""A recipe that goes on with a finished model: to a larger resolution, or on other data.

The VQVAE and the text encoder stay as they are. Rotary positions carry over; a new resolution's level rows begin as
those of the resolution it comes from (STAR, section on training at higher resolutions).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_cli.checkpoints.folder import TRANSFORMER, ModelFolder
from star_cli.checkpoints.tensors import stored_dtype
from star_cli.errors import OptionError
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.fields import with_changes
from star_cli.training.recipe import Recipe
from star_cli.training.recipe_file import find_recipe, read_recipe, recipe_from_dict

PUBLISHED_SIDES = {
    16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    64: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
"""STAR's schedules, by last side."""
TOKENS_A_BATCH = 8192
"""What the default batches aim at, so that every resolution takes about the same memory."""


def finetune_recipe(
    base: ModelFolder, start: int, target: int, *, data: str | None = None, changes: Sequence[str] = ()
) -> Recipe:
    """What `star finetune` does when nothing else is said.

    Args:
        base: the model to go on with.
        start: a resolution it knows, in pixels.
        target: the resolution to learn, in pixels.
        data: what to learn from; None: what the model was made from.
        changes: single fields to change, as in `read_recipe`.
    Raises:
        OptionError: the model does not know `start`, or its VQVAE cannot make pictures of `target` pixels.
    """
    if start not in base.schedules:
        known = ", ".join(str(each) for each in base.schedules)
        raise OptionError(f"{base.name} does not draw {start} px", f"it draws {known}")
    schedules = dict(base.schedules)
    if target not in schedules:
        sides = longer_sides(base.schedules[start].sides, _last_side(base, target))
        schedules[target] = ScaleSchedule(sides, base.transformer.levels)
    section, seed, source = _defaults(base, start, target)
    values = {
        "name": base.name if target in base.schedules else f"{base.name}-{target}",
        "seed": seed,
        "licence": base.licence,
        "default_resolution": base.default_resolution,
        "store": stored_dtype(list(base.weights(TRANSFORMER))),
        "base": str(base.path),
        "resolutions": {
            str(resolution): {"sides": list(schedule.sides), "first_level": schedule.first_level}
            for resolution, schedule in schedules.items()
        },
        "data": {"source": data or source},
        "sampling": base.sampling.to_dict(),
        "finetune": section | {"levels_from": start, "source": ""},
    }
    return recipe_from_dict(with_changes(values, changes))


def longer_sides(sides: Sequence[int], last: int) -> tuple[int, ...]:
    """Sides of a schedule that ends at `last`, in the manner of a known one.

    A schedule of powers of two goes on with powers of two, STAR's become STAR's; any other one is stretched.
    """
    if sides[-1] == last:
        return tuple(sides)
    doubling = tuple(2**power for power in range(last.bit_length()))
    if tuple(sides) == doubling[: len(sides)] and doubling[-1] == last:
        return doubling
    if last in PUBLISHED_SIDES and PUBLISHED_SIDES.get(sides[-1]) == tuple(sides):
        return PUBLISHED_SIDES[last]
    stretched = {1, last} | {max(1, round(1 + (side - 1) * (last - 1) / max(sides[-1] - 1, 1))) for side in sides}
    return tuple(sorted(stretched))


def _last_side(base: ModelFolder, target: int) -> int:
    factor = base.vqvae.factor
    if target < factor or target % factor:
        raise OptionError(
            f"{target} px is no multiple of {factor}: the VQVAE of {base.name} has one token map cell for {factor} px",
            f"the next one is {max(1, round(target / factor)) * factor} px",
        )
    return target // factor


def _defaults(base: ModelFolder, start: int, target: int) -> tuple[dict[str, Any], int, str]:
    """The finetune section, seed and data of the recipe that made the model, where that ships; else plain ones."""
    made_by = str(base.provenance.get("recipe", ""))
    try:
        recipe = read_recipe(find_recipe(made_by))
    except OptionError:
        recipe = None
    if recipe is not None and recipe.finetune is not None:
        source = recipe.finetune.source or recipe.data.source
        if {portion.resolution for portion in recipe.finetune.portions} <= {start, target}:
            return recipe.finetune.to_dict(), recipe.seed, source
        return {**_plain(base, start, target), "loop": recipe.finetune.loop.to_dict()}, recipe.seed, source
    return _plain(base, start, target), 0, str(base.provenance.get("source", "shapes"))


def _plain(base: ModelFolder, start: int, target: int) -> dict[str, Any]:
    """STAR's finetune in outline: mostly the new resolution, and some of the old one so that it is not forgotten."""
    schedules = base.schedules
    sides = {start: schedules[start].sides}
    sides[target] = (
        schedules[target].sides if target in schedules else longer_sides(sides[start], _last_side(base, target))
    )
    batch = {each: max(1, TOKENS_A_BATCH // sum(side**2 for side in sides[each])) for each in sides}
    portions = [{"resolution": target, "batch_size": batch[target], "share": 0.7}]
    if start != target:
        portions.append({"resolution": start, "batch_size": batch[start], "share": 0.3})
    return {
        "stage": {"scenes": 2048},
        "loop": {"steps": 2000, "learning_rate": 1e-4, "warmup_steps": 100, "ema_decay": 0.99},
        "portions": portions,
    }


def default_run(recipe: Recipe) -> Path:
    """Where a finetune keeps its checkpoints when nobody says."""
    return Path("runs") / f"{recipe.name}-finetune"
