"""Storing what a recipe made: the model folder and its card."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import star_cli
from star_cli.checkpoints.folder import ModelFolder
from star_cli.checkpoints.writing import write_model_folder
from star_cli.models.transformer import StarTransformer
from star_cli.training.making import Made
from star_cli.training.recipe import Recipe

_DATA = {"shapes": "scenes drawn by star_cli.data.shapes"}
CARD = Path(__file__).parent / "recipes"


def export_model(made: Made, out: Path, recipe_name: str) -> ModelFolder:
    """Write the model folder, whole or not at all.

    Args:
        made: what `Maker.made` gave.
        out: the folder.
        recipe_name: what the documented command calls the recipe.
    Raises:
        ModelFolderError: `out` holds something else, or cannot be written.
    """
    recipe = made.recipe
    provenance = {
        "recipe": recipe_name,
        "seed": recipe.seed,
        "data": _DATA.get(recipe.data.source.partition(":")[0], recipe.data.source),
        "source": recipe.data.source,
        "seconds": {name: round(value) for name, value in made.seconds.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "star_version": star_cli.__version__,
        "torch_version": torch.__version__.split("+")[0],
    }
    return write_model_folder(
        out,
        name=recipe.name,
        transformer=made.transformer,
        vqvae=made.vqvae,
        text_encoder_folder=made.text_folder,
        text_encoder_config=made.text_config,
        schedules=recipe.schedules,
        sampling=recipe.sampling,
        licence=recipe.licence,
        provenance=provenance,
        model_card=_model_card(recipe, made.transformer, recipe_name),
        dtype=getattr(torch, recipe.store),
        default_resolution=recipe.default_resolution,
        words=made.words,
    )


def _model_card(recipe: Recipe, transformer: StarTransformer, recipe_name: str) -> str:
    """The recipe's own card where there is one beside it, else the bare facts."""
    card = CARD / f"{recipe_name}.md"
    if card.is_file():
        return card.read_text(encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    sizes = " and ".join(f"{resolution}" for resolution in recipe.schedules)
    return (
        f"# {recipe.name}\n\n"
        f"A scale-wise text-to-image model for {sizes} pixels, trained by star-cli on {recipe.data.source}.\n\n"
        f"- transformer: {parameters / 1e6:.1f} M parameters, depth {transformer.config.depth}\n"
        f"- licence: {recipe.licence}\n- how it was made: `provenance` in config.json\n"
    )
