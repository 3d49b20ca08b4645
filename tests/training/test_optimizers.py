"""Which optimiser moves what, and what decays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.training_speed import SCHEDULES, MadeUp
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.optimizers import make_optimizers
from star_cli.training.star import StarStage, StarStageConfig
from star_cli.training.star_batches import Portion
from tests.training.tiny_stages import LOOP

MODEL = TransformerConfig(
    depth=2, width=32, heads=2, codebook_size=16, code_dim=8, levels=10, text_width=16, modulation="text_shared"
)
VQVAE = VQVAEConfig(codebook_size=16, code_dim=8, channels=8, multipliers=(1, 1, 1), blocks=1, patch=4, groups=1)


def stage(model: TransformerConfig) -> StarStage:
    source = MadeUp(Portion(resolution=256, batch_size=2, share=1.0), SCHEDULES[256], model, is_pixels=False)
    vqvae = MultiScaleVQVAE(VQVAE).eval().requires_grad_(False)
    no_words: Any = None  # features come with the batch
    return StarStage(model, StarStageConfig(scenes=1), {256: SCHEDULES[256]}, vqvae, no_words, source)


@pytest.mark.parametrize("model", [MODEL, replace(MODEL, position="learned", learned_positions=680)])
def test_muon_learns_the_linear_layers_of_the_blocks_alone(model: TransformerConfig) -> None:
    made = stage(model)
    muon, _ = make_optimizers(made, replace(LOOP, matrix_learning_rate=1e-3))
    (group,) = muon.param_groups
    names = {id(parameter): name for name, parameter in made.transformer.named_parameters()}
    told = {names[id(parameter)] for parameter in group["params"]}
    linear = {name for name, part in made.transformer.named_modules() if isinstance(part, nn.Linear)}
    assert told == {f"{name}.weight" for name in linear if name.startswith("blocks.")}


@pytest.mark.parametrize("model", [MODEL, replace(MODEL, position="learned", learned_positions=680)])
def test_places_levels_and_offsets_do_not_decay(model: TransformerConfig) -> None:
    """The list of VAR's training."""
    made = stage(model)
    (adamw,) = make_optimizers(made, LOOP)
    names = {id(parameter): name for name, parameter in made.transformer.named_parameters()}
    decaying, spared = ({names[id(one)] for one in group["params"]} for group in adamw.param_groups)
    free = ("start_position", "position_embedding", "level_embedding.weight", "modulation_offset")
    assert {name for name in names.values() if name.endswith(free)} <= spared
    assert "head.weight" in decaying
    vectors = {name for name, part in made.transformer.named_parameters() if part.ndim < 2}
    assert vectors <= spared


def test_made_up_batches_tell_what_they_are() -> None:
    """The benchmark of training speed trains on them through the usual loop."""
    made = stage(MODEL)
    assert made.settings()["data"]["seed"] == 0
    loss, _ = made.loss(made.source.batch(0), 0)
    assert torch.isfinite(loss)
