"""Which codes may be drawn, and the draw.

Letters: B images, l tokens of a scale, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import Randomness


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


def draw_tokens(logits: Tensor, options: SamplingOptions, randomness: Randomness) -> Tensor:
    """Draw one code for each token.

    Args:
        logits: guided logits, (B, l, V), float32.
        options: temperature, top-k, top-p; temperature 0 takes the likeliest code and draws nothing.
        randomness: of B images.
    Returns:
        (B, l), int64.
    """
    if options.temperature == 0:
        return logits.argmax(-1)
    return randomness.choose(_probabilities(logits, options))


def draw_with_probability(logits: Tensor, options: SamplingOptions, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """Draw one code for each token, and tell how likely it was; arguments as in `draw_tokens`.

    Returns:
        Codes, (B, l), int64, and the probability of each after filtering, (B, l), float32. At temperature 0, which
        leaves one code of probability 1, that before filtering: it still tells the sure tokens from the others.
    """
    if options.temperature == 0:
        probabilities = logits.softmax(-1)
        return logits.argmax(-1), probabilities.amax(-1)
    probabilities = _probabilities(logits, options)
    tokens = randomness.choose(probabilities)
    return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]


def _probabilities(logits: Tensor, options: SamplingOptions) -> Tensor:
    return filter_logits(logits / options.temperature, options.top_k, options.top_p).softmax(-1)
