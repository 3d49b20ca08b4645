"""Reading loss of stage 0: from the pooled text feature alone, a linear layer must tell everything a scene shows.

The contrastive loss asks a caption to differ from the other captions of its batch. That leaves out what few pairs
need, and a transformer that draws from such features learns slowly. The scenes are ours, so the answers are known:
background, and for each of three slots shape, colour, size and place.

Letters: B captions, D width, A attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.data.scenes import BACKGROUNDS, COLOURS, ENDS_OF_THREE, HIGH, LOW, SHAPES, SIZES, Scene

SLOTS = 3
_COORDINATES = sorted({LOW, HIGH, *ENDS_OF_THREE})
_THING = (tuple(SHAPES), tuple(COLOURS), tuple(SIZES), tuple(_COORDINATES), tuple(_COORDINATES))
_CHOICES = (len(BACKGROUNDS), *(1 + len(values) for values in _THING * SLOTS))  # 0 stands for an empty slot
_BOUNDS = tuple(pairwise((0, *accumulate(_CHOICES))))


def scene_labels(scenes: Sequence[Scene]) -> Tensor:
    """What each scene shows, as class indices, (B, A) int64; things in their order in the scene."""
    return torch.tensor([_labels(scene) for scene in scenes])


def _labels(scene: Scene) -> list[int]:
    labels = [list(BACKGROUNDS).index(scene.background)]
    for thing in scene.things:
        told = (thing.shape, thing.colour, thing.size, thing.x, thing.y)
        labels += [1 + values.index(value) for values, value in zip(_THING, told, strict=True)]
    return labels + [0] * (len(_CHOICES) - len(labels))


class Reader(nn.Module):
    """The linear layer; not shipped."""

    def __init__(self, width: int):
        super().__init__()
        self.answers = nn.Linear(width, sum(_CHOICES))

    def forward(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy over all attributes, and the share of them told right.

        Args:
            features: text features before normalisation, (B, D).
            labels: from `scene_labels`, (B, A).
        """
        scores = [self.answers(features)[:, first:last].float() for first, last in _BOUNDS]
        losses = [F.cross_entropy(score, labels[:, index]) for index, score in enumerate(scores)]
        right = torch.stack([score.argmax(1) == labels[:, index] for index, score in enumerate(scores)])
        return torch.stack(losses).mean(), right.all(dim=0).float().mean()
