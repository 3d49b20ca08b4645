"""Reading a recipe: a TOML file, or one that ships, with single fields changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import Config, TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.config import read_toml
from star_cli.training.fields import with_changes
from star_cli.training.recipe import (
    PLAIN,
    STAGES,
    ClipRecipe,
    DataConfig,
    Recipe,
    ResolutionConfig,
    StableRecipe,
    StarRecipe,
    VQVAERecipe,
)
from star_cli.training.star_batches import Portion

RECIPES = Path(__file__).parent / "recipes"
_Section = TypeVar("_Section", ClipRecipe, VQVAERecipe, StarRecipe, StableRecipe)


def find_recipe(name_or_path: str) -> Path:
    """A recipe file: a path, or the name of one that is part of the package.

    Raises:
        OptionError: neither is there.
    """
    for path in (Path(name_or_path), RECIPES / f"{name_or_path}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    raise OptionError(f"no recipe {name_or_path}", f"give a TOML file, or one of: {known}")


def read_recipe(
    path: Path, changes: Sequence[str] = (), done: Mapping[str, Any] | None = None, data: str | None = None
) -> Recipe:
    """Read and check a whole recipe before any work.

    Args:
        path: the file.
        changes: single fields to change, "star.loop.steps=100" (see `fields.with_changes`).
        done: sections that stand as they are, in place of the file's: of stages that a run has behind it.
        data: what all stages learn from, those with a source of their own as well; None: as the file says.
    Raises:
        OptionError: a field is missing, unknown, or has an unusable value.
    """
    values = read_toml(path)
    if data is not None:
        values = _with_data(values, data)
    values = with_changes(values | dict(done or {}), changes)
    try:
        return recipe_from_dict(values)
    except OptionError as error:
        raise OptionError(f"{path.name}: {error}", error.hint) from error


def _with_data(values: Mapping[str, Any], data: str) -> dict[str, Any]:
    """What a recipe's file says, but with one source for all stages."""
    told = {name: section for name, section in values.items() if name in STAGES and isinstance(section, Mapping)}
    for name, section in told.items():
        told[name] = {field: value for field, value in section.items() if field != "source"}
    return {**values, **told, "data": {**values.get("data", {}), "source": data}}


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """A recipe from what its file says.

    Raises:
        OptionError: a field is missing, unknown, or has an unusable value.
    """
    known = {*PLAIN, "resolutions", "data", "sampling", *STAGES}
    if unknown := sorted(set(values) - known):
        raise OptionError(f"unknown field {', '.join(unknown)}", f"known fields: {', '.join(sorted(known))}")
    try:
        return _parse(values)
    except KeyError as error:
        raise OptionError(f"{error.args[0]} is missing") from error
    except (AttributeError, TypeError) as error:  # a number where a section should be, words where a number should be
        raise OptionError(f"a section or field has a value of the wrong kind: {error}") from error


def _parse(values: Mapping[str, Any]) -> Recipe:
    schedules = _schedules(values["resolutions"])
    clip, vqvae = _section(ClipRecipe, "clip", values), _section(VQVAERecipe, "vqvae", values)
    transformer = None
    if "star" in values:
        star = dict(values["star"])
        values = {**values, "star": star}
        given: dict[str, Any] = {"levels": max(schedule.first_level + len(schedule) for schedule in schedules.values())}
        if vqvae is not None:
            given |= {"codebook_size": vqvae.model.codebook_size, "code_dim": vqvae.model.code_dim}
        if clip is not None:
            given["text_width"] = clip.stage.text_width
        transformer = _transformer(given, star.pop("model"))
    return Recipe(
        **{key: values[key] for key in PLAIN if key in values or key in ("name", "default_resolution", "licence")},
        schedules=schedules,
        data=DataConfig.from_dict(values.get("data", {})),
        sampling=SamplingOptions.from_dict(values.get("sampling", {})),
        clip=clip,
        vqvae=vqvae,
        transformer=transformer,
        star=_section(StarRecipe, "star", values),
        finetune=_section(StarRecipe, "finetune", values),
        stable=_section(StableRecipe, "stable", values),
    )


def _schedules(values: Mapping[str, Any]) -> dict[int, ScaleSchedule]:
    """Each resolution has level rows of its own, in the order of the file, unless `first_level` says which."""
    schedules, level = {}, 0
    for resolution, said in values.items():
        told = said if isinstance(said, Mapping) else {"sides": said, "first_level": level}
        if not str(resolution).isdecimal():
            raise OptionError(f"resolutions.{resolution}: a resolution is a whole number of pixels")
        own = ResolutionConfig.from_dict(told)
        schedules[int(resolution)] = ScaleSchedule(own.sides, own.first_level)
        level = max(level, own.first_level + len(own.sides))
    return dict(sorted(schedules.items()))


def _transformer(given: Mapping[str, Any], said: Mapping[str, Any]) -> TransformerConfig:
    """What the other sections decide need not be said again, and must not be said otherwise."""
    for key, value in given.items():
        if said.get(key, value) != value:
            raise OptionError(f"star.model.{key} is {said[key]}, but the other sections make it {value}")
    return TransformerConfig.from_dict({**given, **said})


def _section(kind: type[_Section], name: str, recipe: Mapping[str, Any]) -> _Section | None:
    """What the recipe says of a stage; None where it has no such section. `stage` alone may be left out as a whole."""
    if name not in recipe:
        return None
    said = {"stage": {}, **recipe[name]}
    hints = get_type_hints(kind)
    if unknown := sorted(set(said) - set(hints)):
        raise OptionError(f"{name} has no field {', '.join(unknown)}", f"known fields: {', '.join(hints)}")
    parts: dict[str, Any] = {}
    for field, hint in hints.items():
        if isinstance(hint, type) and issubclass(hint, Config):
            parts[field] = hint.from_dict(said[field])
        elif field == "portions":
            parts[field] = tuple(Portion.from_dict(portion) for portion in said[field])
        elif field in said:
            parts[field] = said[field]
    return kind(**parts)
