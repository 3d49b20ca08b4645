"""The perceptual term: LPIPS, how far apart two images look to a network that knows photographs (Zhang et al. 2018).

The network and its calibrated weights come with the package `lpips`; the network's own ImageNet weights are
torchvision's, from a file or downloaded once. Nothing here learns, and nothing belongs into a checkpoint.

Letters: B images, H W pixels.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from star_cli.errors import DownloadError, OptionError, WeightsFileError

Net = Literal["vgg", "alex", "squeeze"]
LEAST_SIDE = 32
"""Pixels: all of the networks' layers have something to look at."""

_TORCHVISION = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}


class PerceptualLoss(nn.Module):
    """LPIPS with frozen weights.

    Args:
        net: whose features are compared; "vgg" is the one VQGAN trains with.
        backbone: file with its ImageNet weights, a state dict as torchvision stores it; None: torchvision's own.
    Raises:
        OptionError: `lpips` is not installed.
        DownloadError: no file was given, and the weights cannot be fetched.
        WeightsFileError: the file cannot be read, or is of another network.
    """

    def __init__(self, net: Net = "vgg", backbone: Path | None = None):
        super().__init__()
        try:
            import lpips
        except ImportError as error:
            raise OptionError(
                "the perceptual loss needs the package lpips, which is not installed",
                "pip install 'star-cli[train]', or set perceptual_weight = 0",
            ) from error
        # building draws random weights, which are then replaced: the run's own random numbers stay as they were
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it calls torchvision in a way that is going out of use
            self.lpips = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        _fill(self.lpips.net, _read(backbone) if backbone else _fetch(net), str(backbone or f"torchvision's {net}"))
        self.eval().requires_grad_(False)

    def forward(self, restored: Tensor, images: Tensor) -> Tensor:
        """Mean distance of pairs: (B, 3, H, W) each, -1..1, at least `LEAST_SIDE` wide -> ()."""
        return self.lpips(images, restored).mean()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsFileError(f"cannot read {path}: {error.strerror or error}") from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsFileError(f"{path} is no file of weights: {error}") from error
    if not isinstance(state, Mapping):
        raise WeightsFileError(f"{path} holds no state dict")
    return state


def _fetch(net: Net) -> Mapping[str, Any]:
    """ImageNet weights of torchvision, from its cache or over the network."""
    import torchvision

    weights = getattr(torchvision.models, _TORCHVISION[net]).DEFAULT
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu")
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise DownloadError(
            f"cannot fetch {weights.url} for the perceptual loss: {error}",
            "fetch it elsewhere and give the file as perceptual_backbone, or set perceptual_weight = 0",
        ) from error


def _fill(net: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Give the network its weights; it holds torchvision's layers `features.N` as `sliceM.N`, and no classifier.

    Raises:
        WeightsFileError: a layer is missing or of another shape.
    """
    own = net.state_dict()
    wanted = {key: f"features.{key.partition('.')[2]}" for key in own}
    wrong = [theirs for key, theirs in wanted.items() if getattr(state.get(theirs), "shape", None) != own[key].shape]
    if wrong:
        raise WeightsFileError(
            f"{source} is of another network: {', '.join(wrong[:3])} missing or of another shape",
            "perceptual_net says which network is wanted",
        )
    net.load_state_dict({key: state[theirs] for key, theirs in wanted.items()})
