"""LPIPS: distances, gradients, and weights that are not there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from star_cli.errors import DownloadError, OptionError, WeightsFileError
from star_cli.models.config import VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.perceptual import PerceptualLoss
from star_cli.training.vqvae import VQVAEStage
from star_cli.training.vqvae_config import VQVAEStageConfig


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest of the networks, with random weights, as torchvision stores it."""
    pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("backbone") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_equal_images_are_no_distance_apart_and_different_ones_pull(backbone: Path) -> None:
    state = torch.get_rng_state()
    loss = PerceptualLoss("squeeze", backbone)
    assert torch.equal(torch.get_rng_state(), state)
    real, restored = images(0), images(1).requires_grad_()
    assert loss(real, real) == 0
    distance = loss(restored, real)
    assert distance > 0.01
    distance.backward()
    assert restored.grad is not None
    assert restored.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_the_networks_weights_are_the_files(backbone: Path) -> None:
    loss = PerceptualLoss("squeeze", backbone)
    first = torch.load(backbone, weights_only=True)["features.0.weight"]
    assert torch.equal(loss.lpips.net.slice1[0].weight, first)


def test_the_term_joins_the_loss_and_stays_out_of_the_checkpoint(backbone: Path) -> None:
    model = VQVAEConfig(codebook_size=32, code_dim=8, channels=8, multipliers=(1, 2), blocks=1, patch=4, groups=1)
    plain = VQVAEStageConfig(batch_size=2, plain_share=0.5, plain_crop=64, plain_batch_size=2, crop=32)
    config = replace(plain, perceptual_weight=2.0, perceptual_net="squeeze", perceptual_backbone=str(backbone))
    losses, keys = [], []
    for each in (plain, config):
        torch.manual_seed(0)
        stage = VQVAEStage(model, each, {64: ScaleSchedule((1, 2, 4, 8))}, 4, 0)
        loss, figures = stage.loss(stage.source.batch(0), 0)
        losses.append(loss)
        keys.append(set(stage.state_dict()))
    assert torch.allclose(losses[1], losses[0] + 2 * figures["lpips"], atol=1e-5)
    assert keys[0] == keys[1]


def test_files_that_do_not_fit_are_refused(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match=r"cannot read .*nowhere"):
        PerceptualLoss("squeeze", tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    with pytest.raises(WeightsFileError, match="no file of weights"):
        PerceptualLoss("squeeze", tmp_path / "text.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsFileError, match="another network"):
        PerceptualLoss("squeeze", tmp_path / "other.pth")


def test_weights_that_cannot_be_fetched_are_told(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_args: object, **_kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(DownloadError, match="no network") as caught:
        PerceptualLoss("squeeze")
    assert "perceptual_backbone" in (caught.value.hint or "")


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(OptionError, match="package lpips") as caught:
        PerceptualLoss()
    assert "star-cli[train]" in (caught.value.hint or "")
