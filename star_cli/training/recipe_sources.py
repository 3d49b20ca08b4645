"""What the stages of a recipe learn from: pictures with captions, and batches of their tokens.

A source is opened once for all stages that share it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from star_cli.data.cache import open_cache
from star_cli.data.cache_build import build_cache
from star_cli.data.cache_plan import CacheOptions
from star_cli.data.open import SHAPES, open_source
from star_cli.data.part import Part
from star_cli.data.source import CaptionedImages, ShapeScenes
from star_cli.data.tokens import scene_tokens
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.distributed import main_first
from star_cli.training.recipe import Recipe, StableRecipe, StarRecipe
from star_cli.training.star_batches import StarSource, TokenSource, scenes_in_use
from star_cli.training.star_sources import CachedBatches, PixelBatches

OnCache = Callable[[str, int, int], None]
"""Called while scenes become tokens: what, how many are done, their total."""


class RecipeSources:
    """Pictures and batches of one run of a recipe.

    Args:
        recipe: names what to learn from.
        run: folder for shards that are read from a pipe, and for tokens made once.
        on_cache: called while tokens are made.
    """

    def __init__(self, recipe: Recipe, run: Path, on_cache: OnCache | None = None):
        self.recipe, self.run, self.on_cache = recipe, run, on_cache

    def pictures(self, source: str) -> CaptionedImages | None:
        """Those of a stage that names its own source; "": the recipe's.

        None stands for the built-in scenes, which every stage knows more about than a caption says.
        """
        return self._open(source) if source else self._pictures

    def held_out(self, name: str, source: str, count: int) -> CaptionedImages | None:
        """What a stage is judged by.

        Args:
            name: of pictures to take the first from, or of scenes to take others of; "": the stage names none.
            source: what the stage learns from, as in `pictures`; its others are taken where none are named.
            count: how many; fewer where there are fewer.
        Returns:
            None: none are named, and the source has no others.
        """
        pictures = (self._open(name) if name else self.pictures(source)) or ShapeScenes(count)
        if (others := pictures.others(count)) is not None:
            return others
        return Part(pictures, range(min(count, len(pictures)))) if name else None

    def words(self, source: str) -> frozenset[str] | None:
        """Of a source's captions, named as in `pictures`; None: not counted."""
        return (self.pictures(source) or ShapeScenes(1)).words

    def batches(
        self,
        part: StarRecipe | StableRecipe,
        name: str,
        vqvae: MultiScaleVQVAE,
        text_encoder: TextEncoder,
        is_finished: bool,
    ) -> StarSource:
        """Batches from a token cache that was made before, from one of generated scenes made here, or from pixels.

        Args:
            part: the stage's settings.
            name: of the stage.
            vqvae: makes tokens.
            text_encoder: reads captions.
            is_finished: the stage is; no tokens are then made for it.
        """
        data, drop, seed = self.recipe.data, part.stage.drop_text, self.recipe.seed
        schedules = dict(self.recipe.schedules)
        wanted = {resolution: schedules[resolution] for resolution in {each.resolution for each in part.portions}}
        own = part.source if isinstance(part, StarRecipe) else ""
        pictures = self.pictures(own)
        if data.cache and not own:
            cache = open_cache(data.cache, vqvae=vqvae, text_encoder=text_encoder, schedules=wanted, source=pictures)
            return CachedBatches(cache, schedules, part.portions, drop, seed)
        if pictures is None:
            tokens = {} if is_finished else self._shape_tokens(part, vqvae, wanted)
            return TokenSource(tokens, schedules, part.portions, drop, seed)
        if pictures.is_generated and part.stage.scenes and not is_finished:
            return self._cached_scenes(pictures, part, name, vqvae, wanted)
        return PixelBatches(pictures, schedules, part.portions, drop, seed, data.crop)

    def _shape_tokens(
        self, part: StarRecipe | StableRecipe, vqvae: MultiScaleVQVAE, wanted: dict[int, ScaleSchedule]
    ) -> dict[int, Tensor]:
        """Tokens of the built-in scenes, made once in the run's folder."""
        tokens = {}
        scenes = scenes_in_use(part.portions, part.loop.steps, part.stage.scenes)
        for resolution, schedule in sorted(wanted.items()):
            on_part = None if self.on_cache is None else partial(self.on_cache, f"tokens at {resolution} px")
            with main_first():
                tokens[resolution] = scene_tokens(
                    vqvae, schedule, resolution, 0, scenes[resolution], self.run / "tokens", on_part
                )
        return tokens

    def _cached_scenes(
        self,
        scenes: CaptionedImages,
        part: StarRecipe | StableRecipe,
        name: str,
        vqvae: MultiScaleVQVAE,
        wanted: dict[int, ScaleSchedule],
    ) -> StarSource:
        """The first scenes of an endless source, their tokens made once in the run's folder."""
        first = Part(scenes, range(min(part.stage.scenes, len(scenes))))
        options = CacheOptions(features="none", workers=part.loop.workers)
        with main_first():
            cache = build_cache(first, self.run / f"tokens-{name}", vqvae, None, wanted, options, self.on_cache)
        drop, seed = part.stage.drop_text, self.recipe.seed
        return CachedBatches(cache, self.recipe.schedules, part.portions, drop, seed, captions=first, tells_tokens=True)

    @cached_property
    def _pictures(self) -> CaptionedImages | None:
        data = self.recipe.data
        return self._open(data.source, data.image_column or None, data.caption_column or None)

    def _open(
        self, source: str, image_column: str | None = None, caption_column: str | None = None
    ) -> CaptionedImages | None:
        if source == SHAPES and image_column is caption_column is None:
            return None
        return open_source(
            source, image_column=image_column, caption_column=caption_column, spool_folder=self.run / "shards"
        )
