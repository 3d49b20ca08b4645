"""Endless captioned pictures of shapes, drawn on the fly: the training data of star-shapes.

A seed gives a scene and a caption; `render` draws it at any resolution. Seeds below `HELD_OUT_SEED` are for training;
the scenes of the others are never seen there.
"""

from __future__ import annotations

import random

from star_cli.data.captions import caption
from star_cli.data.drawing import render, render_tensor
from star_cli.data.scenes import BACKGROUNDS, COLOURS, HELD_OUT_SEED, SHAPES, SIZES, Scene, Thing, scene, variant

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "HELD_OUT_SEED",
    "SHAPES",
    "SIZES",
    "Scene",
    "Thing",
    "caption",
    "render",
    "render_tensor",
    "sample",
    "scene",
    "variant",
]


def sample(seed: int) -> tuple[Scene, str]:
    """The scene of a seed and a caption for it."""
    shown = scene(seed)
    return shown, caption(shown, random.Random(f"caption {seed}"))
