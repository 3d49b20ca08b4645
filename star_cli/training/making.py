"""Making a model by its recipe: each stage in turn, from the parts that earlier stages, or the base model, gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from star_cli.checkpoints.folder import TEXT_FOLDER, ModelFolder
from star_cli.checkpoints.known import find_model
from star_cli.errors import OptionError, TrainingError
from star_cli.images import write_whole
from star_cli.models.config import TextEncoderConfig, TransformerConfig
from star_cli.models.text import TextEncoder, load_text_encoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.upscale import copy_levels, move_to_schedule
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.checkpoint import OnNote, refuse_a_run
from star_cli.training.clip import save_text_encoder
from star_cli.training.clip_stage import ClipStage
from star_cli.training.codebook import without_parked_codes
from star_cli.training.config import LoopConfig, read_toml
from star_cli.training.distributed import is_main, join, main_first
from star_cli.training.initialise import take_over
from star_cli.training.loop import OnProgress, Stage, is_finished, train_stage
from star_cli.training.recipe import STAGES, Recipe, StarRecipe
from star_cli.training.recipe_checks import check_levels, check_schedules
from star_cli.training.recipe_sources import OnCache, RecipeSources
from star_cli.training.stable import StableStage, add_stable_head
from star_cli.training.star import StarStage
from star_cli.training.vqvae import VQVAEStage

RECIPE_FILE = "recipe.toml"
TRANSFORMERS = ("star", "finetune", "stable")
"""Stages that leave a transformer, each that of the stage before as it goes on."""
Resume = Literal["auto", "never"]


def other_sections(run: Path, stage: str) -> dict[str, Any]:
    """What the run's own recipe says of its other stages: they stay what they were when they were trained.

    Args:
        run: the run's folder.
        stage: the stage that is to be trained now.
    Raises:
        OptionError: the recipe there is no valid TOML.
    """
    path = run / RECIPE_FILE
    if not path.exists():
        return {}
    others = [name for name in STAGES if name != stage and (run / name).is_dir()]
    return {name: section for name, section in read_toml(path).items() if name in others}


@dataclass(frozen=True)
class Made:
    """What a recipe made, ready to be stored."""

    recipe: Recipe
    transformer: StarTransformer
    vqvae: MultiScaleVQVAE
    text_folder: Path | None
    text_config: TextEncoderConfig | None
    seconds: dict[str, float]
    """Training time of each stage."""
    words: frozenset[str] | None
    """All words that its text encoder has read in captions; None: not counted."""


class Maker:
    """One run of a recipe. Stages that are finished in its folder are taken from their checkpoints.

    Args:
        recipe: what to make.
        run: folder for checkpoints, caches and previews.
        on_progress: called after each training step.
        on_cache: called while the token caches are made.
        on_note: told what the user should know though the work goes on.
        resume: whether a stage that is asked for goes on with a run that is there ("auto"), or refuses to ("never").
            Earlier stages that are finished serve as they are either way.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        on_progress: OnProgress | None = None,
        on_cache: OnCache | None = None,
        on_note: OnNote | None = None,
        resume: Resume = "auto",
    ):
        self.recipe, self.run = recipe, run
        self.on_progress, self.on_note = on_progress, on_note
        self._sources = RecipeSources(recipe, run, on_cache)
        self.resume: Resume = resume
        self._asked: str | None = None
        self.seconds: dict[str, float] = {}

    def train(self, stage: str) -> None:
        """Train one stage.

        Raises:
            TrainingError: a stage that it needs is not finished in this run, or its own was begun and may not go on.
        """
        join(self.recipe.loop(stage))
        self._asked = stage
        if self.recipe.vqvae is None:  # else the recipe has checked it
            check_schedules(self.recipe.schedules, self._base.vqvae.factor, f"the VQVAE of {self._base.name}")
        if self.recipe.star is None:
            check_levels(self.recipe, self._base.schedules, self._base.name)
        if self.resume == "never":  # before any work
            refuse_a_run(self.run / stage)
        for earlier in self._needed_by(stage):
            if not self._is_finished(earlier):
                raise TrainingError(
                    f"stage {stage} needs stage {earlier}, which is not finished in {self.run}",
                    f"train it first: star train {earlier}; or take the part from a model: --model NAME",
                )
        _ = {"clip": lambda: self._text, "vqvae": lambda: self._vqvae}.get(stage, lambda: self._transformer(stage))()

    def made(self) -> Made:
        """All parts, once a stage that trains a transformer is finished."""
        finished = [stage for stage in self.recipe.stages if stage in TRANSFORMERS and self._is_finished(stage)]
        transformer = self._transformer(finished[-1]) if finished else self._base_transformer
        _, folder, config = self._text
        return Made(self.recipe, transformer, self._vqvae, folder, config, self.seconds, self._words)

    def _needed_by(self, stage: str) -> tuple[str, ...]:
        before = self.recipe.stages[: self.recipe.stages.index(stage)]
        return () if stage in ("clip", "vqvae") else before

    def _is_finished(self, stage: str) -> bool:
        return is_finished(self.run / stage, self.recipe.loop(stage))

    # -- parts --------------------------------------------------------------------------------------------------------

    @cached_property
    def _base(self) -> ModelFolder:
        return find_model(self.recipe.base)

    @cached_property
    def _text(self) -> tuple[TextEncoder, Path | None, TextEncoderConfig]:
        """The text encoder, the folder to store with the model (None: it comes from a hub), and how to load it."""
        recipe = self.recipe
        if recipe.clip is None:
            return self._base_text()
        torch.manual_seed(recipe.seed)
        clip = ClipStage(recipe.clip.stage, recipe.seed, self._sources.pictures(recipe.clip.source), recipe.data.crop)
        self._learn(clip, recipe.clip.loop)
        folder = self.run / TEXT_FOLDER
        with main_first():
            if is_main():
                save_text_encoder(clip.clip, recipe.clip.stage, folder)
        config = recipe.clip.stage.text_encoder_config
        return load_text_encoder(config, self.run), folder, config

    def _base_text(self) -> tuple[TextEncoder, Path | None, TextEncoderConfig]:
        base = self._base
        if base.text_encoder is None:
            raise OptionError(f"base model {base.name} draws classes and has no text encoder", "give another base")
        stored = base.path / TEXT_FOLDER
        return base.load_text_encoder(), stored if stored.is_dir() else None, base.text_encoder

    @cached_property
    def _vqvae(self) -> MultiScaleVQVAE:
        recipe = self.recipe
        if recipe.vqvae is None:
            return self._base.load_vqvae(dtype=torch.float32).eval().requires_grad_(False)
        torch.manual_seed(recipe.seed)
        part = recipe.vqvae
        pictures = self._sources.pictures(part.source)
        held_out = self._sources.held_out(part.held_out, part.source, part.stage.evaluate_count)
        stage = VQVAEStage(
            part.model, part.stage, dict(recipe.schedules), part.loop.steps, recipe.seed, pictures, held_out
        )
        if part.start_from and not self._is_finished("vqvae"):
            take_over(stage.vqvae, find_model(part.start_from).load_vqvae(dtype=torch.float32))
        self._learn(stage, part.loop)
        return without_parked_codes(stage.vqvae) if stage.is_quietened else stage.vqvae

    def _transformer(self, name: str) -> StarTransformer:
        """The transformer as stage "star", "finetune" or "stable" leaves it."""
        if name == "stable" and name not in self._transformers:
            self._transformers[name] = self._with_stable_head()
        if name not in self._transformers:
            part: StarRecipe = getattr(self.recipe, name)
            stage = self._star_stage(part, name)
            # a checkpoint of adapters does not hold the weights they stand on
            if name == "finetune" and (part.loop.lora_rank or not self._is_finished(name)):
                self._begin_finetune(stage.transformer)
            self._learn(stage, part.loop)
            self._transformers[name] = stage.transformer
        return self._transformers[name]

    @cached_property
    def _transformers(self) -> dict[str, StarTransformer]:
        return {}

    @cached_property
    def _base_transformer(self) -> StarTransformer:
        """The base model's, with level rows for all schedules of the recipe."""
        transformer = self._base.load_transformer(dtype=torch.float32)
        longest = max(self.recipe.schedules.values(), key=lambda schedule: schedule.first_level + len(schedule))
        if longest.first_level + len(longest) <= transformer.config.levels:
            return transformer
        return move_to_schedule(transformer, longest, torch.Generator().manual_seed(self.recipe.seed))

    def _with_stable_head(self) -> StarTransformer:
        """The transformer of the stage before, or of the base model, with a head that has learned on it."""
        recipe, part = self.recipe, self.recipe.stable
        assert part is not None
        before = [name for name in TRANSFORMERS[:-1] if name in recipe.stages]
        transformer = self._transformer(before[-1]) if before else self._base_transformer
        torch.manual_seed(recipe.seed)
        source = self._sources.batches(part, "stable", self._vqvae, self._text[0], self._is_finished("stable"))
        stage = StableStage(
            add_stable_head(transformer, part.first_scale, part.blocks, part.version),
            part.stage,
            {portion.resolution: recipe.schedules[portion.resolution] for portion in part.portions},
            self._vqvae,
            self._text[0],
            source,
            seed=recipe.seed,
        )
        self._learn(stage, part.loop)
        return stage.transformer

    def _begin_finetune(self, transformer: StarTransformer) -> None:
        """Weights from the trained resolutions; level rows of those it has not seen from a resolution it has."""
        recipe = self.recipe
        if recipe.star is not None:
            trained = {portion.resolution for portion in recipe.star.portions}
            state = self._transformer("star").state_dict()
        else:
            trained = set(self._base.schedules)
            state = self._base_transformer.state_dict()
        transformer.load_state_dict(state)
        assert recipe.finetune is not None
        source = recipe.schedules[recipe.finetune.levels_from or min(trained & set(recipe.schedules))]
        for resolution in sorted({portion.resolution for portion in recipe.finetune.portions} - trained):
            generator = torch.Generator().manual_seed(recipe.seed)
            copy_levels(transformer, source, recipe.schedules[resolution], recipe.finetune.levels_by, generator)

    @property
    def _model_config(self) -> TransformerConfig:
        """The recipe's transformer, for the codes and the text features that there are."""
        config = self.recipe.transformer or self._base_transformer.config
        codes, text = self._vqvae.config, self._text[2]
        return replace(config, codebook_size=codes.codebook_size, code_dim=codes.code_dim, text_width=text.width)

    def _star_stage(self, part: StarRecipe, name: str) -> StarStage:
        recipe = self.recipe
        text_encoder, vqvae = self._text[0], self._vqvae
        torch.manual_seed(recipe.seed)
        source = self._sources.batches(part, name, vqvae, text_encoder, self._is_finished(name))
        return StarStage(
            self._model_config,
            part.stage,
            dict(recipe.schedules),
            vqvae,
            text_encoder,
            source,
            name,
            recipe.seed,
            recipe.sampling,
            self._sources.held_out(part.held_out, part.source, part.held_out_count),
            part.loop.steps,
        )

    @property
    def _words(self) -> frozenset[str] | None:
        """What the text encoder, or the base model's, has read in captions."""
        if self.recipe.clip is None:
            return self._base.words
        return self._sources.words(self.recipe.clip.source)

    def _learn(self, stage: Stage, loop: LoopConfig) -> None:
        is_asked = stage.name == self._asked
        self.seconds[stage.name] = train_stage(
            stage,
            loop,
            self.run / stage.name,
            self.on_progress,
            resume=self.resume if is_asked else "auto",
            on_note=self.on_note,
            on_begin=self._write_recipe if is_asked else None,
        )

    def _write_recipe(self) -> None:
        """Not before the stage may go on: a recipe that is refused must not stand for what was trained."""
        if is_main():
            self.run.mkdir(parents=True, exist_ok=True)
            write_whole(self.run / RECIPE_FILE, self.recipe.to_toml().encode(), overwrite=True)
