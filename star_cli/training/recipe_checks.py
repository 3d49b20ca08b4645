"""Do the parts of a recipe fit each other, and the base model? What would otherwise be found out after hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from star_cli.data.open import SHAPES, is_endless
from star_cli.errors import OptionError
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.star import own_draws_need_pictures
from star_cli.training.star_batches import Portion
from star_cli.training.vqvae_batches import check_crops

if TYPE_CHECKING:
    from star_cli.training.recipe import DataConfig, Recipe, StableRecipe, StarRecipe

STORED = ("float32", "bfloat16", "float16")


def check_parts(recipe: Recipe) -> None:
    """Do the sections fit each other?

    Raises:
        OptionError: two of them do not.
    """
    if recipe.store not in STORED:
        raise OptionError(f"store must be one of {', '.join(STORED)}, not {recipe.store}")
    if recipe.default_resolution not in recipe.schedules:
        raise OptionError(f"default_resolution {recipe.default_resolution} has no schedule")
    needs_base = [name for name in ("clip", "vqvae", "star") if getattr(recipe, name) is None]
    if needs_base and not recipe.base:
        raise OptionError(
            f"the recipe has no section {needs_base[0]}, and no base model to take that part from",
            'add the section, or base = "MODEL"',
        )
    for name in ("star", "finetune", "stable"):
        if (part := getattr(recipe, name)) is not None:
            _check_portions(name, part.portions, recipe.schedules)
    for part in (recipe.star, recipe.finetune):
        if part is not None:
            _check_star(part, recipe)
    if recipe.stable is not None:
        _check_stable(recipe.stable, recipe.schedules)
    if recipe.vqvae is not None:
        check_schedules(recipe.schedules, recipe.vqvae.model.factor, "the recipe's VQVAE")
        check_crops(recipe.vqvae.stage, min(recipe.schedules), recipe.vqvae.model.factor)


def check_schedules(schedules: Mapping[int, ScaleSchedule], factor: int, whose: str) -> None:
    """Does each schedule end at the side that a VQVAE makes of its resolution?

    Args:
        schedules: by resolution in pixels.
        factor: pixels a side of one token.
        whose: the VQVAE, for the message.
    Raises:
        OptionError: one does not.
    """
    for resolution, schedule in schedules.items():
        if schedule.last_side * factor != resolution:
            raise OptionError(
                f"the schedule of {resolution} px ends at {schedule.last_side * factor} px",
                f"{whose} makes one token of {factor} x {factor} px",
            )


def check_levels(recipe: Recipe, trained: Mapping[int, ScaleSchedule], whose: str) -> None:
    """Does the recipe go on with the level rows that a base model's transformer has?

    Args:
        recipe: trains no transformer from nothing.
        trained: the base model's schedules.
        whose: the base model, for the message.
    Raises:
        OptionError: a resolution of both has other scales or rows there, or a new one has no rows to begin from.
    """
    for resolution, schedule in recipe.schedules.items():
        if schedule != trained.get(resolution, schedule):
            raise OptionError(
                f"the recipe's scales or level rows of {resolution} px are not those of {whose}",
                _as_there(resolution, trained),
            )
    part = recipe.finetune
    if part is None or all(portion.resolution in trained for portion in part.portions):
        return
    shared = sorted(trained.keys() & recipe.schedules)
    if not shared:
        raise OptionError(
            f"the recipe has no resolution of {whose}, whose level rows new ones could begin from",
            _as_there(min(trained), trained),
        )
    _check_levels_from(part, shared)


def _as_there(resolution: int, trained: Mapping[int, ScaleSchedule]) -> str:
    sides, first = list(trained[resolution].sides), trained[resolution].first_level
    return f"say {resolution} = {{ sides = {sides}, first_level = {first} }} in [resolutions]"


def _check_levels_from(part: StarRecipe, trained: Sequence[int]) -> None:
    if part.levels_from not in (0, *trained):
        raise OptionError(
            f"levels_from {part.levels_from} is no resolution that is trained before",
            f"those are {', '.join(map(str, trained))}",
        )


def _check_portions(stage: str, portions: Sequence[Portion], schedules: Mapping[int, ScaleSchedule]) -> None:
    if not portions:
        raise OptionError(f"[{stage}] has no portions, so there is nothing to learn", "say at least one")
    for portion in portions:
        if portion.resolution not in schedules or portion.scales > len(schedules[portion.resolution]):
            raise OptionError(
                f"portion of {portion.scales or 'all'} scales at {portion.resolution} px fits no schedule"
            )


def _check_star(part: StarRecipe, recipe: Recipe) -> None:
    if part.levels_from and part.levels_from not in recipe.schedules:
        raise OptionError(f"levels_from {part.levels_from} has no schedule")
    if part is recipe.star and part.loop.lora_rank:
        raise OptionError(
            "[star] begins with random weights, which adapters would leave as they are",
            "set star.loop.lora_rank = 0; a finetune takes adapters",
        )
    if part is recipe.finetune and recipe.star is not None:
        _check_levels_from(part, sorted({portion.resolution for portion in recipe.star.portions}))
    part.stage.check_kept(recipe.schedules)
    if part.stage.own_draws and _learns_from_tokens(part, recipe.data):
        raise own_draws_need_pictures()


def _learns_from_tokens(part: StarRecipe, data: DataConfig) -> bool:
    """Do its batches come from a cache, as `RecipeSources.batches` has it, whatever is in the source?"""
    source = part.source or data.source
    is_generated = source.startswith(f"{SHAPES}:") or is_endless(source)
    return source == SHAPES or bool(data.cache and not part.source) or (is_generated and part.stage.scenes > 0)


def _check_stable(part: StableRecipe, schedules: Mapping[int, ScaleSchedule]) -> None:
    for portion in part.portions:
        scales = portion.scales or len(schedules[portion.resolution])
        if scales <= part.first_scale:
            raise OptionError(
                f"stable.first_scale {part.first_scale} refines none of {scales} scales at {portion.resolution} px",
                f"lower it to {scales - 1} to refine the last one",
            )
