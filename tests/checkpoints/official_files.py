"""Official files of tiny models with random weights, made from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star_cli.checkpoints.published import PUBLISHED, PublishedModel
from star_cli.checkpoints.translate import official_places
from star_cli.models.config import TextEncoderConfig, TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule((1, 2, 4))
TINY_VQVAE = VQVAEConfig(codebook_size=16, code_dim=8, channels=8, multipliers=(1, 2), blocks=1, groups=4)
TINY_STAR = replace(
    PUBLISHED["star-256"],
    name="tiny-star",
    transformer=replace(
        PUBLISHED["star-256"].transformer,
        depth=2,
        width=16,
        heads=2,
        text_width=32,
        levels=3,
        codebook_size=16,
        code_dim=8,
    ),
    vqvae=TINY_VQVAE,
    schedule=SCHEDULE,
    text_reference=TextEncoderConfig(kind="open_clip", width=32, source="./elsewhere"),
    transformer_file="tiny-star.pth",
)
TINY_VAR = replace(
    PUBLISHED["var-d16"],
    name="tiny-var",
    transformer=replace(
        PUBLISHED["var-d16"].transformer,
        depth=2,
        width=16,
        heads=2,
        levels=3,
        codebook_size=16,
        code_dim=8,
        learned_positions=SCHEDULE.length,
    ),
    vqvae=TINY_VQVAE,
    schedule=SCHEDULE,
    transformer_file="tiny-var.pth",
)


def random_like(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def official_state(
    config: TransformerConfig | VQVAEConfig, schedule: ScaleSchedule = SCHEDULE, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights under official keys; what follows from the config is as it must be."""
    places = official_places(config, schedule)
    state = random_like({key: place.shape for key, place in places.items()}, seed)
    derived = {key: place.refill for key, place in places.items() if place.refill is not None and not place.row.kept}
    return {**state, **derived}


def snapshot(transformer: Mapping[str, Tensor], vqvae: Mapping[str, Tensor] | None, sides: Any) -> dict[str, Any]:
    """As the authors of STAR wrap a training checkpoint."""
    trainer: dict[str, Any] = {"config": {"patch_nums": sides, "prog_it": 0}, "var_wo_ddp": dict(transformer)}
    if vqvae is not None:
        trainer["vae_local"] = dict(vqvae)
    trainer["var_opt"] = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95)}]}}
    return {"epoch": 3, "iter": 20000, "trainer": trainer}


def write_files(folder: Path, model: PublishedModel) -> list[Path]:
    """The files of a model, named and wrapped as published: transformer, VQVAE."""
    folder.mkdir(parents=True, exist_ok=True)
    state = official_state(model.transformer, model.schedule)
    content = snapshot(state, None, model.schedule.sides) if model.transformer.conditioning == "text" else state
    assert model.transformer_file is not None
    torch.save(content, folder / model.transformer_file)
    torch.save(official_state(model.vqvae, model.schedule, seed=1), folder / model.vqvae_file)
    return [folder / model.transformer_file, folder / model.vqvae_file]
