"""A recipe: one file from which a whole model is made, stage after stage, and stored as a model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from star_cli.data.tokens import scene_tokens
from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import Config, TextEncoderConfig, TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder, load_text_encoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.clip import ClipStageConfig, save_text_encoder
from star_cli.training.clip_stage import ClipStage
from star_cli.training.config import LoopConfig, read_toml
from star_cli.training.loop import OnProgress, is_finished, train_stage
from star_cli.training.star import Portion, StarStage, StarStageConfig, TokenSource, copy_levels
from star_cli.training.vqvae import VQVAEStage, VQVAEStageConfig

STORED = ("float32", "bfloat16", "float16")
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class StarRecipe(Config):
    """Stage 2, or the finetune to a larger resolution."""

    stage: StarStageConfig
    loop: LoopConfig
    portions: tuple[Portion, ...]


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """All that decides a shipped model."""

    name: str
    """Name of the model."""
    seed: int
    """Everything random follows from it."""
    licence: str
    """Licence of the weights."""
    default_resolution: int
    """Resolution drawn when none is asked for."""
    store: str
    """Dtype of the stored tensors."""
    schedules: dict[int, ScaleSchedule]
    """Scale schedule of each resolution, smallest first."""
    sampling: SamplingOptions
    """Defaults of the draw."""
    clip: ClipStageConfig
    clip_loop: LoopConfig
    vqvae_model: VQVAEConfig
    vqvae: VQVAEStageConfig
    vqvae_loop: LoopConfig
    transformer: TransformerConfig
    star: StarRecipe
    finetune: StarRecipe


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


def read_recipe(path: Path) -> Recipe:
    """Read and check a whole recipe before any work.

    Raises:
        OptionError: a field is missing, unknown, or has an unusable value.
    """
    values = read_toml(path)
    try:
        return _parse(values)
    except KeyError as error:
        raise OptionError(f"{path.name}: {error.args[0]} is missing") from error
    except OptionError as error:
        raise OptionError(f"{path.name}: {error}", error.hint) from error


def _parse(values: Mapping[str, Any]) -> Recipe:
    schedules, level = {}, 0
    for resolution, sides in sorted(values["resolutions"].items(), key=lambda item: int(item[0])):
        schedules[int(resolution)] = ScaleSchedule(tuple(sides), level)
        level += len(sides)
    clip = ClipStageConfig.from_dict(values["clip"].get("stage", {}))
    vqvae_model = VQVAEConfig.from_dict(values["vqvae"]["model"])
    transformer = TransformerConfig.from_dict(
        {
            "codebook_size": vqvae_model.codebook_size,
            "code_dim": vqvae_model.code_dim,
            "levels": level,
            "text_width": clip.text_width,
            **values["star"]["model"],
        }
    )
    plain = ("name", "seed", "licence", "default_resolution", "store")
    known = {*plain, "resolutions", "sampling", "clip", "vqvae", "star", "finetune"}
    if unknown := sorted(set(values) - known):
        raise OptionError(f"unknown field {', '.join(unknown)}")
    recipe = Recipe(
        **{key: values[key] for key in plain},
        schedules=schedules,
        sampling=SamplingOptions.from_dict(values["sampling"]),
        clip=clip,
        clip_loop=LoopConfig.from_dict(values["clip"]["loop"]),
        vqvae_model=vqvae_model,
        vqvae=VQVAEStageConfig.from_dict(values["vqvae"].get("stage", {})),
        vqvae_loop=LoopConfig.from_dict(values["vqvae"]["loop"]),
        transformer=transformer,
        star=_star_recipe(values["star"], schedules),
        finetune=_star_recipe(values["finetune"], schedules),
    )
    _check_parts_fit(recipe)
    return recipe


def _check_parts_fit(recipe: Recipe) -> None:
    """What would otherwise be found out after an hour."""
    factor = recipe.vqvae_model.factor
    for resolution, schedule in recipe.schedules.items():
        if schedule.last_side * factor != resolution:
            raise OptionError(f"the schedule of {resolution} px ends at {schedule.last_side * factor} px")
    if recipe.default_resolution not in recipe.schedules:
        raise OptionError(f"default_resolution {recipe.default_resolution} has no schedule")
    if recipe.store not in STORED:
        raise OptionError(f"store must be one of {', '.join(STORED)}, not {recipe.store}")
    for crop in (recipe.vqvae.crop, recipe.vqvae.plain_crop):
        if crop % factor or crop > min(recipe.schedules):
            raise OptionError(f"a crop of {crop} px is no multiple of {factor}, or larger than the smallest picture")


def _star_recipe(values: Mapping[str, Any], schedules: Mapping[int, ScaleSchedule]) -> StarRecipe:
    portions = tuple(Portion.from_dict(portion) for portion in values["portions"])
    for portion in portions:
        if portion.resolution not in schedules or portion.scales > len(schedules[portion.resolution]):
            raise OptionError(
                f"portion of {portion.scales or 'all'} scales at {portion.resolution} px fits no schedule"
            )
    return StarRecipe(
        stage=StarStageConfig.from_dict(values["stage"]), loop=LoopConfig.from_dict(values["loop"]), portions=portions
    )


OnCache = Callable[[str, int, int], None]
"""Called while scenes become tokens: what, how many are done, their total."""


@dataclass(frozen=True)
class Made:
    """What a recipe made, ready to be stored."""

    recipe: Recipe
    transformer: StarTransformer
    vqvae: MultiScaleVQVAE
    text_folder: Path
    text_config: TextEncoderConfig
    seconds: dict[str, float]
    """Training time of each stage."""


def make_model(
    recipe: Recipe, run: Path, on_progress: OnProgress | None = None, on_cache: OnCache | None = None
) -> Made:
    """Train every stage, or go on where an earlier call stopped.

    Args:
        recipe: what to make.
        run: folder for checkpoints, caches and previews.
        on_progress: called after each training step.
        on_cache: called while the token caches are made.
    """
    seconds = {}
    torch.manual_seed(recipe.seed)
    clip = ClipStage(recipe.clip, recipe.seed)
    seconds["clip"] = train_stage(clip, recipe.clip_loop, run / "clip", on_progress)
    text_folder = run / "text_encoder"
    save_text_encoder(clip.clip, recipe.clip, text_folder)
    text_encoder = load_text_encoder(recipe.clip.text_encoder_config, run)

    torch.manual_seed(recipe.seed)
    vqvae_stage = VQVAEStage(recipe.vqvae_model, recipe.vqvae, recipe.schedules, recipe.vqvae_loop.steps, recipe.seed)
    seconds["vqvae"] = train_stage(vqvae_stage, recipe.vqvae_loop, run / "vqvae", on_progress)
    vqvae = vqvae_stage.vqvae

    torch.manual_seed(recipe.seed)
    star = _star_stage(recipe, recipe.star, "star", vqvae, text_encoder, run, on_cache)
    seconds["star"] = train_stage(star, recipe.star.loop, run / "star", on_progress)

    finetune = _star_stage(recipe, recipe.finetune, "finetune", vqvae, text_encoder, run, on_cache)
    finetune.transformer.load_state_dict(star.transformer.state_dict())
    smallest, *larger = recipe.schedules.values()
    for schedule in larger:
        copy_levels(finetune.transformer, smallest, schedule)
    seconds["finetune"] = train_stage(finetune, recipe.finetune.loop, run / "finetune", on_progress)
    return Made(recipe, finetune.transformer, vqvae, text_folder, recipe.clip.text_encoder_config, seconds)


def _star_stage(
    recipe: Recipe,
    part: StarRecipe,
    name: str,
    vqvae: MultiScaleVQVAE,
    text_encoder: TextEncoder,
    run: Path,
    on_cache: OnCache | None,
) -> StarStage:
    cache = {}
    needed = {portion.resolution for portion in part.portions} if not is_finished(run / name, part.loop) else set()
    for resolution in sorted(needed):
        on_part = None if on_cache is None else _named(on_cache, f"tokens at {resolution} px")
        schedule = recipe.schedules[resolution]
        cache[resolution] = scene_tokens(vqvae, schedule, resolution, 0, part.stage.scenes, run / "tokens", on_part)
    source = TokenSource(cache, recipe.schedules, part.portions, part.stage.drop_text, recipe.seed)
    return StarStage(recipe.transformer, part.stage, recipe.schedules, vqvae, text_encoder, source, name)


def _named(on_cache: OnCache, name: str) -> Callable[[int, int], None]:
    return lambda done, total: on_cache(name, done, total)
