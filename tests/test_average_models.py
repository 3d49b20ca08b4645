"""The mean of several models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.average_models import average_models
from star_cli.checkpoints.folder import ModelFolder, read_model_folder
from star_cli.checkpoints.writing import write_model_folder
from star_cli.errors import OptionError


def moved(folder: ModelFolder, path: Path, by: float) -> ModelFolder:
    """The same model with every weight of its transformer moved."""
    transformer = folder.load_transformer()
    with torch.no_grad():
        for weight in transformer.parameters():
            weight += by
    return write_model_folder(
        path,
        name=folder.name,
        transformer=transformer,
        vqvae=folder.load_vqvae(),
        text_encoder_folder=folder.path / "text_encoder",
        text_encoder_config=folder.text_encoder,
        schedules=folder.schedules,
        sampling=folder.sampling,
        licence=folder.licence,
        provenance=folder.provenance,
        model_card="a card",
    )


def test_the_mean_has_the_mean_weights_and_all_else_of_the_last(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    models = [moved(folder, tmp_path / f"{by}", by) for by in (0.0, 1.0, 3.0)]
    mean = average_models(models, [0.5, 0.25, 0.25], tmp_path / "mean")
    start, made = folder.load_transformer().state_dict(), mean.load_transformer().state_dict()
    for name in start:
        assert torch.allclose(made[name], start[name] + 1, atol=1e-5)
    assert mean.sampling == folder.sampling
    assert mean.files["vqvae.safetensors"] == models[-1].files["vqvae.safetensors"]
    assert mean.provenance["mean_of"] == dict(zip((model.hash for model in models), (0.5, 0.25, 0.25), strict=True))


def test_what_has_no_mean_is_refused(tiny_model_folder: Path, own_model_folder: Path, tmp_path: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    with pytest.raises(OptionError, match="as many shares that add up to 1"):
        average_models([folder, folder], [0.5, 0.4], tmp_path / "mean")
    vqvae = folder.load_vqvae()
    with torch.no_grad():
        vqvae.quantizer.codebook.weight += 1
    other = write_model_folder(
        own_model_folder,
        name=folder.name,
        transformer=folder.load_transformer(),
        vqvae=vqvae,
        text_encoder_folder=folder.path / "text_encoder",
        text_encoder_config=folder.text_encoder,
        schedules=folder.schedules,
        sampling=folder.sampling,
        licence=folder.licence,
        provenance={},
        model_card="a card",
    )
    with pytest.raises(OptionError, match="differ in more than the weights"):
        average_models([folder, other], [0.5, 0.5], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
