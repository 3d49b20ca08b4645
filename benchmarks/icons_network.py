"""The judge's eye: a small convolutional network that tells which things a picture shows, how many, and on what ground.

Letters: B pictures, H W pixels, N objects, G grounds, D features.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SIDE = 96
"""Every picture is looked at in this size."""
MOST = 4
"""Things in a picture, at most."""


@dataclass(frozen=True)
class Seen:
    """What the network says of B pictures."""

    things: Tensor
    """(B, N), a logit for each object: is it there?"""
    number: Tensor
    """(B, `MOST`), logits: how many things in all, less one."""
    ground: Tensor
    """(B, G), logits."""
    features: Tensor
    """(B, D), before the answers."""


@dataclass(frozen=True)
class EyeConfig:
    """What a trained judge knows; stored with its weights."""

    keys: tuple[str, ...]
    """Objects in the order of their logits."""
    grounds: tuple[str, ...]
    width: int = 24
    """Channels after the first convolution."""


class Eye(nn.Module):
    """Residual network of three widths; shares nothing with the models it judges."""

    def __init__(self, config: EyeConfig):
        super().__init__()
        self.config = config
        widths = [config.width, 2 * config.width, 4 * config.width, 8 * config.width]
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.blocks = nn.Sequential(
            *(_Block(before, after) for before, after in pairwise(widths)),
            _Block(widths[-1], widths[-1], stride=1),
        )
        self.things = nn.Linear(2 * widths[-1], len(config.keys))
        nn.init.constant_(self.things.bias, -4.0)  # nearly everything is absent
        self.number = nn.Linear(2 * widths[-1], MOST)
        self.ground = nn.Linear(2 * widths[-1], len(config.grounds))

    def forward(self, pixels: Tensor) -> Seen:
        """Look at pictures of any square size: (B, 3, H, W), -1..1."""
        if pixels.shape[-1] != SIDE:
            pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = self.blocks(self.stem(pixels))  # (B, D / 2, 6, 6)
        # the mean tells how much there is of something, the maximum that there is some
        features = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
        answers = (answer(features).float() for answer in (self.things, self.number, self.ground))
        return Seen(*answers, features.float())

    def save(self, path: Path) -> None:
        """Write weights and config to one file."""
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, path, metadata={"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path: Path) -> Eye:
        """Read a trained judge, ready to judge."""
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["config"])
        eye = cls(EyeConfig(tuple(facts["keys"]), tuple(facts["grounds"]), facts["width"]))
        eye.load_state_dict(load_file(path))
        return eye.eval()


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 2):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.past = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 or before != after else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.norms[1](self.second(F.relu(self.norms[0](self.first(maps)))))
        return F.relu(inner + self.past(maps))
