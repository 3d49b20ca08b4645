"""Inception features: the real network with random weights, and weights that are not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch

from star_cli.errors import DownloadError, OptionError, WeightsFileError
from star_cli.evaluation.inception import InceptionFeatures


def test_images_become_features_of_the_files_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patched:  # its random weights, as a file
        torch.manual_seed(0)
        patched.setattr(module, "load_state_dict_from_url", lambda *_args, **_kwargs: {})
        patched.setattr(kind, "load_state_dict", lambda *_args: None)
        torch.save(kind("inception", ["2048"]).state_dict(), tmp_path / "inception.pth")
    state = torch.get_rng_state()
    features = InceptionFeatures(tmp_path / "inception.pth")
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    told = features(images)
    assert told.shape == (2, features.width)
    assert torch.equal(told, InceptionFeatures(tmp_path / "inception.pth")(images))
    assert not torch.equal(told[0], told[1])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    with pytest.raises(WeightsFileError, match="cannot read"):
        InceptionFeatures(tmp_path / "nowhere.pth")
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    with pytest.raises(WeightsFileError, match="no file of weights"):
        InceptionFeatures(tmp_path / "text.pth")
    for content in ({"fc.weight": torch.zeros(1)}, torch.zeros(1), [1], {1: torch.zeros(1)}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(WeightsFileError, match="another network"):
            InceptionFeatures(tmp_path / "other.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    with pytest.raises(WeightsFileError, match=r"no file of weights: \w"):
        InceptionFeatures(tmp_path / "empty.pth")


def test_weights_that_cannot_be_fetched_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity")

    def no_network(*_args: object, **_kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(DownloadError, match="no network") as caught:
        InceptionFeatures()
    assert "inception_weights" in (caught.value.hint or "")


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(OptionError, match="torch-fidelity") as caught:
        InceptionFeatures()
    assert "star-cli[train]" in (caught.value.hint or "")
