"""Stable sampling: one scale drawn in several steps, the surest positions first (STAR, causal-driven stable sampling).

The blocks have run; only heads run again. Early steps fix a few positions at random, later ones those whose code was
likeliest; what is fixed is shown to the stable head in the steps that follow.

Letters: B images (2B rows under guidance), l tokens of the scale, C width, V codes, Z code width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from star_cli.generation.filtering import Draws, prepare_draws
from star_cli.generation.guidance import guide, ramped_guidance
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import Randomness
from star_cli.models.block import Prompted
from star_cli.models.config import TransformerConfig
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer

STEPS, STEPS_OF_LARGE = 8, 15
LARGE_SCALE = 13
"""From this scale on, version "1024" takes more steps and its own head alone."""
EARLY_STEPS = 5
"""Steps whose confidences are random numbers; in version "1024" those of the ordinary head."""


@dataclass(frozen=True)
class Step:
    """What one step does."""

    uses_base_head: bool
    """The ordinary head, which fixes the likeliest positions first and then others; else the stable one."""
    is_random: bool
    """The positions to fix are chosen at random, else by probability."""
    count: int
    """Positions to fix; twice with the ordinary head."""


def reveal_counts(steps: int, positions: int) -> list[int]:
    """How many positions each step fixes: few at first, all together `positions`.

    The share of a step is arccos of its place from 1 down to 0; float32 and rounding half to even, as published. Of
    very few positions the last count can be 0 or less; no released model refines so small a scale.
    """
    shares = torch.linspace(1, 0, steps).arccos() / (math.pi / 2)
    counts = [max(int(count), 1) for count in (shares / shares.sum() * positions).round().tolist()]
    counts[-1] += positions - sum(counts)
    return counts


def plan_steps(config: TransformerConfig, scale: int, positions: int) -> list[Step]:
    """The steps of one scale, by the version that the weights were trained for."""
    is_released = config.stable_version == "1024"
    is_large = scale >= LARGE_SCALE
    counts = reveal_counts(STEPS_OF_LARGE if is_released and is_large else STEPS, positions)
    return [
        Step(is_released and not is_large and step < EARLY_STEPS, step < EARLY_STEPS, count)
        for step, count in enumerate(counts)
    ]


def is_refined(transformer: StarTransformer, scale: int, options: SamplingOptions) -> bool:
    """Is this scale drawn in steps?"""
    settled = options.for_head(transformer.config.stable_head)
    return bool(settled.stable) and scale >= transformer.config.stable_from


def draw_stable(
    transformer: StarTransformer,
    quantizer: MultiScaleQuantizer,
    hidden: Tensor,
    prompted: Prompted,
    schedule: ScaleSchedule,
    scale: int,
    options: SamplingOptions,
    randomness: Randomness,
) -> Tensor:
    """Draw the tokens of one scale in steps.

    Args:
        transformer: with a stable head.
        quantizer: looks up the codes that are fixed.
        hidden: from `run_blocks`; under guidance conditional rows first, (B or 2B, l, C).
        prompted: from `prompt`, as many rows.
        schedule: all scales of the picture.
        scale: index of this one.
        options: guidance and filters; the ordinary head's guidance is ramped, the stable head's is not.
        randomness: of the B images. At temperature 0 nothing is random: confidences are always probabilities.
    Returns:
        (B, l), int64.
    """
    images = len(hidden) // 2 if options.guidance > 0 else len(hidden)
    positions = hidden.shape[1]
    tokens = torch.zeros(images, positions, dtype=torch.int64, device=hidden.device)
    fixed = torch.zeros(images, positions, dtype=torch.bool, device=hidden.device)
    ramped = ramped_guidance(options.guidance, scale, schedule)
    base: Draws | None = None  # by the ordinary head, whose logits are the same in every step
    for step in plan_steps(transformer.config, scale, positions):
        randomness.begin_step(positions)
        if step.uses_base_head:
            if base is None:
                base = prepare_draws(_guided(transformer.logits(hidden, prompted), ramped, options), options)
            draw = base
        else:
            base = None  # its steps come first: what it holds of all codes may go
            codes = quantizer.codebook(tokens) * fixed[..., None]  # (B, l, Z)
            logits = transformer.stable_logits(codes, hidden, prompted, schedule, range(scale, scale + 1))
            draw = prepare_draws(_guided(logits, options.guidance, options), options)
        drawn, sureness = draw(randomness)
        if step.uses_base_head:  # among all, those already fixed included
            tokens, fixed = _fix(tokens, fixed, drawn, sureness, step.count)
        if step.is_random and options.temperature > 0:
            sureness = randomness.confidences(sureness)
        tokens, fixed = _fix(tokens, fixed, drawn, sureness * ~fixed, step.count)
    return tokens


def _guided(logits: Tensor, strength: float, options: SamplingOptions) -> Tensor:
    return guide(logits, strength) if options.guidance > 0 else logits


def _fix(tokens: Tensor, fixed: Tensor, drawn: Tensor, sureness: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Fix the surest positions at what was just drawn there; what was fixed before keeps its code."""
    chosen = sureness.topk(max(count, 0), dim=-1).indices
    now = fixed.scatter(-1, chosen, True)
    return torch.where(now & ~fixed, drawn, tokens), now
