"""Which codes may be drawn, and the draw.

Letters: B images, l tokens of a scale, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from star_cli.generation.options import SamplingOptions


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the logits of codes that may not be drawn to -inf.

    Top-k keeps every code at least as likely as the k-th, ties included. Top-p then drops the least likely codes whose
    probabilities together stay within 1 - p; the likeliest code always stays.

    Args:
        logits: (..., V), float32.
        top_k: 0 keeps all.
        top_p: 0 keeps all.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1)
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        dropped[..., -1] = False
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return logits


def draw_tokens(logits: Tensor, options: SamplingOptions, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one code for each token; image i draws from generator i alone.

    Args:
        logits: guided logits, (B, l, V), float32.
        options: temperature, top-k, top-p; temperature 0 takes the likeliest code.
        generators: B generators.
    Returns:
        (B, l), int64.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    probabilities = filter_logits(logits / options.temperature, options.top_k, options.top_p).softmax(-1)
    return torch.stack(
        [_categorical(rows, generator) for rows, generator in zip(probabilities, generators, strict=True)]
    )


def _categorical(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row of (l, V) by a race of exponential clocks: the noise ignores the probabilities."""
    clocks = torch.empty(probabilities.shape, device=generator.device).exponential_(generator=generator)
    return (probabilities / clocks.to(probabilities.device)).argmax(-1)
