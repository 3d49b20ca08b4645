"""A recipe: all that decides a model, section by section. `recipe_file.py` reads one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import Config, TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.upscale import LevelRule
from star_cli.training.clip import ClipStageConfig
from star_cli.training.config import LoopConfig
from star_cli.training.fields import to_toml
from star_cli.training.recipe_checks import check_parts
from star_cli.training.stable import StableStageConfig
from star_cli.training.star import StarStageConfig
from star_cli.training.star_batches import Portion
from star_cli.training.vqvae_config import VQVAEStageConfig

STAGES = ("clip", "vqvae", "star", "finetune", "stable")
"""Sections that train something, in this order."""
PLAIN = ("name", "seed", "licence", "default_resolution", "store", "base")
"""Fields outside the sections."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What all stages learn from."""

    source: str = "shapes"
    """Built-in scenes ("shapes"), a folder, tar shards or a dataset of the hub; see `star data check`."""
    image_column: str = ""
    """Column of pictures, where the source is a dataset; "": found by its type."""
    caption_column: str = ""
    """Column or JSON field of captions; "": found by its name."""
    crop: Literal["centre", "random"] = "random"
    """Where a square is cut from a longer picture. Generated scenes are square."""
    cache: str = ""
    """Folder made by `star data tokens`, which stage 2 and the finetune then learn from; empty: from pixels."""

    def __post_init__(self) -> None:
        self._check_choices()
        if not self.source:
            raise OptionError("data.source must say what to learn from")


@dataclass(frozen=True, kw_only=True)
class ResolutionConfig(Config):
    """The scale schedule of a resolution, written out."""

    sides: tuple[int, ...]
    """Side of each token map, from the start map to the whole latent."""
    first_level: int
    """Row of the level embedding for the first of them; each resolution has rows of its own."""


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(Config):
    """Stage 0."""

    stage: ClipStageConfig
    loop: LoopConfig
    source: str = ""
    """What this stage learns from, when it is not `data.source`."""


@dataclass(frozen=True, kw_only=True)
class VQVAERecipe(Config):
    """Stage 1."""

    model: VQVAEConfig
    stage: VQVAEStageConfig
    loop: LoopConfig
    source: str = ""
    """What this stage learns from, when it is not `data.source`."""
    held_out: str = ""
    """What previews show and `loop.evaluate_every` judges by, named as a source is; "": scenes of other seeds where the
    source makes scenes, else a part of the source that is kept back."""
    start_from: str = ""
    """Model (name or folder) whose encoder and decoder give the first weights, wherever names and shapes agree; "":
    none, from nothing."""


@dataclass(frozen=True, kw_only=True)
class StarRecipe(Config):
    """Stage 2, or the finetune to a larger resolution."""

    stage: StarStageConfig
    loop: LoopConfig
    portions: tuple[Portion, ...]
    source: str = ""
    """What this stage learns from, when it is not `data.source`: easier scenes first, or pictures of its own."""
    held_out: str = ""
    """What `loop.evaluate_every` judges by, named as a source is; "": scenes of other seeds, where the source makes
    scenes."""
    held_out_count: int = 64
    """Its first so many pictures."""
    levels_from: int = 0
    """Resolution whose level rows the new resolutions of a finetune begin from; 0: the smallest that is trained."""
    levels_by: LevelRule = "nearest_side"
    """Which of those rows a scale takes: that of the nearest side ("nearest_side"), of the nearest share of the last
    side ("nearest_normalised"), or of the same index, further ones anew ("published")."""

    def __post_init__(self) -> None:
        self._check_choices()
        if self.held_out_count < 1:
            raise OptionError(f"held_out_count must be at least 1, not {self.held_out_count}")


@dataclass(frozen=True, kw_only=True)
class StableRecipe(Config):
    """The head for stable sampling, on a finished transformer (STAR, causal-driven stable sampling)."""

    stage: StableStageConfig
    loop: LoopConfig
    portions: tuple[Portion, ...]
    first_scale: int
    """First scale that the head draws, counted from 0, at each resolution."""
    blocks: int = 3
    """Blocks of the head."""
    version: Literal["1024", "new"] = "new"
    """How it is used: `TransformerConfig.stable_version`."""

    def __post_init__(self) -> None:
        self._check_choices()
        if self.first_scale < 0 or self.blocks < 1:
            raise OptionError("[stable] needs at least one block, and a first_scale of at least 0")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """All that decides a model. A stage that is None is not trained: its part comes from `base`."""

    name: str
    """Name of the model."""
    seed: int = 0
    """Everything random follows from it."""
    licence: str = "unknown"
    """Licence of the weights."""
    default_resolution: int
    """Resolution drawn when none is asked for."""
    store: Literal["float32", "bfloat16", "float16"] = "float32"
    """Dtype of the stored tensors."""
    base: str = ""
    """Model (name or folder) that gives the parts which no section trains."""
    schedules: Mapping[int, ScaleSchedule]
    """Scale schedule of each resolution, smallest first."""
    data: DataConfig
    sampling: SamplingOptions
    """Defaults of the draw."""
    clip: ClipRecipe | None = None
    vqvae: VQVAERecipe | None = None
    transformer: TransformerConfig | None = None
    """The transformer that stage 2 trains; None when there is no stage 2."""
    star: StarRecipe | None = None
    finetune: StarRecipe | None = None
    stable: StableRecipe | None = None

    def __post_init__(self) -> None:
        check_parts(self)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages it trains, in order."""
        return tuple(name for name in STAGES if getattr(self, name) is not None)

    def loop(self, stage: str) -> LoopConfig:
        """The loop of a stage that it trains."""
        loop: LoopConfig = getattr(self, stage).loop
        return loop

    def alone(self, stage: str, base: str | None = None, batch_size: int | None = None) -> Recipe:
        """The recipe as far as one stage needs it.

        Args:
            stage: which.
            base: model whose tokenizer and text encoder serve, instead of those of earlier stages.
            batch_size: see `with_batch_size`.
        Raises:
            OptionError: the recipe has no such stage.
        """
        if stage not in self.stages:
            raise OptionError(f"recipe {self.name} has no stage {stage}", f"it has {', '.join(self.stages)}")
        recipe = self
        if base is not None:
            recipe = replace(recipe, base=base, clip=None, vqvae=None)
        return recipe if batch_size is None else recipe.with_batch_size(stage, batch_size)

    def with_batch_size(self, stage: str, images: int) -> Recipe:
        """The recipe with other batches in stage 2 or the finetune.

        Args:
            stage: "star" or "finetune".
            images: of a batch of the portion with the most tokens a picture; other portions change in proportion.
        """
        part: StarRecipe = getattr(self, stage)
        heaviest = max(part.portions, key=lambda portion: _tokens(portion, self.schedules))
        share = images / heaviest.batch_size
        portions = [replace(portion, batch_size=max(1, round(portion.batch_size * share))) for portion in part.portions]
        part = replace(part, portions=tuple(portions))
        return replace(self, star=part) if stage == "star" else replace(self, finetune=part)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as its file says it, every field written out."""
        told: dict[str, Any] = {key: getattr(self, key) for key in PLAIN}
        told["resolutions"] = {
            str(key): {"sides": list(schedule.sides), "first_level": schedule.first_level}
            for key, schedule in self.schedules.items()
        }
        told |= {"data": self.data.to_dict(), "sampling": self.sampling.to_dict()}
        for name in self.stages:
            told[name] = getattr(self, name).to_dict()
        if self.star is not None and self.transformer is not None:
            told["star"] = {"model": self.transformer.to_dict(), **told["star"]}
        return told

    def to_toml(self) -> str:
        """`to_dict` as TOML, each field explained."""
        kinds: dict[str, type[Config]] = {"": Recipe, "data": DataConfig, "sampling": SamplingOptions}
        kinds |= {f"resolutions.{resolution}": ResolutionConfig for resolution in self.schedules}
        for name in self.stages:
            part = getattr(self, name)
            kinds[name] = type(part)
            kinds |= {f"{name}.{field.name}": type(getattr(part, field.name)) for field in fields(part)}
            kinds[f"{name}.portions"] = Portion
        kinds["star.model"] = TransformerConfig
        return to_toml(self.to_dict(), kinds)


def _tokens(portion: Portion, schedules: Mapping[int, ScaleSchedule]) -> int:
    """Tokens of one picture in a portion."""
    schedule = schedules[portion.resolution]
    return schedule.offsets[portion.scales or len(schedule)]
