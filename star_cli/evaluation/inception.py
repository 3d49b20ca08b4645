"""Features of the Inception network that FID is defined on, through the package torch-fidelity.

It is the network of the first FID implementation (2015-12-05, converted from TensorFlow), not torchvision's: figures of
the two cannot be compared. Letters: B images, H W pixels.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from star_cli.errors import DownloadError, OptionError, WeightsFileError

WIDTH = 2048
"""Width of a feature: the last pooling layer's."""


class InceptionFeatures:
    """Images to features.

    Args:
        weights: file with the network's weights, as torch-fidelity stores them; None: its own, downloaded once.
    Raises:
        OptionError: torch-fidelity is not installed.
        DownloadError: no file was given, and the weights cannot be fetched.
        WeightsFileError: the file cannot be read, or is of another network.
    """

    width = WIDTH

    def __init__(self, weights: Path | None = None):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
        except ImportError as error:
            raise OptionError(
                "rFID needs the package torch-fidelity, which is not installed",
                "pip install 'star-cli[train]', or go without rFID",
            ) from error
        if weights is not None:
            _check(weights)
        path = None if weights is None else str(weights)
        try:
            # building draws random weights, which are then replaced: a run's own random numbers stay as they were
            with torch.random.fork_rng(devices=[]):
                network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)
        except OSError as error:  # URLError is one
            raise DownloadError(
                f"cannot fetch {URL_INCEPTION_V3}: {error}",
                "fetch it elsewhere and give the file as inception_weights, or go without rFID",
            ) from error
        except (RuntimeError, TypeError, AttributeError) as error:  # the last two: no table of tensors by name
            raise WeightsFileError(f"{weights} is of another network: {error}") from error
        self._network = network

    def to(self, device: torch.device | str) -> Self:
        """Compute there."""
        self._network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8 -> (B, 2048), float32."""
        (features,) = self._network(images.to(self._network.fc.weight.device))
        return features


def _check(path: Path) -> None:
    """Read a file as data alone first: the package would run what a pickle asks for.

    Raises:
        WeightsFileError: it cannot be read, or is no plain file of weights.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsFileError(f"{path} is no file of weights: {str(error) or type(error).__name__}") from error
