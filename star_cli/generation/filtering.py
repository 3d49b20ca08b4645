"""Which codes may be drawn, and the draw.

Letters: B images, l tokens of a scale, V codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import Randomness

Draws = Callable[[Randomness], tuple[Tensor, Tensor]]
"""Draws once more whenever it is called, see `prepare_draws`."""


def filter_by_sort(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set the logits of codes that may not be drawn to -inf. What `filter_logits` does sooner is defined here.

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


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """`filter_by_sort`, but of each row only the k likeliest codes are sorted, where that is allowed.

    It is not in rows where equal logits stand at an edge, for which of them stay is up to the order of all; nor on a
    GPU, which would have to tell the CPU whether there are any, and sorts fast.
    """
    if not (0 < top_k < logits.shape[-1] and top_p > 0 and logits.device.type == "cpu"):
        return filter_by_sort(logits, top_k, top_p)
    likeliest = logits.topk(top_k + 1, dim=-1).values
    ascending = likeliest[..., :-1].flip(-1)  # (..., k)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[..., -1] = False
    least = ascending.masked_fill(dropped, torch.inf).amin(-1, keepdim=True)  # of those that stay
    is_tied = (likeliest[..., -2] == likeliest[..., -1]) | (dropped & (ascending == least)).any(-1)  # (...)
    kept = logits.masked_fill(logits < least, -torch.inf)
    if bool(is_tied.any()):
        kept[is_tied] = filter_by_sort(logits[is_tied], top_k, top_p)
    return kept


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
    return randomness.choose(probabilities_of(logits, options))


def prepare_draws(logits: Tensor, options: SamplingOptions) -> Draws:
    """All of a draw but the draw itself, for logits that are drawn from several times; arguments as in `draw_tokens`.

    Returns:
        Given the randomness: codes, (B, l), int64, and the probability of each after filtering, (B, l), float32. At
        temperature 0, which leaves one code of probability 1, that before filtering: it still tells the sure tokens
        from the others.
    """
    if options.temperature == 0:
        greedy = logits.argmax(-1), logits.softmax(-1).amax(-1)
        return lambda _randomness: greedy
    probabilities = probabilities_of(logits, options)

    def draw(randomness: Randomness) -> tuple[Tensor, Tensor]:
        tokens = randomness.choose(probabilities)
        return tokens, probabilities.gather(-1, tokens[..., None])[..., 0]

    return draw


def probabilities_of(logits: Tensor, options: SamplingOptions) -> Tensor:
    """How likely each code is drawn at a temperature above 0: (B, l, V) from guided logits, adding up to 1."""
    keep = filter_by_sort if options.speed == "reference" else filter_logits
    if options.temperature != 1:  # else a pass over all logits that would change nothing
        logits = logits / options.temperature
    return keep(logits, options.top_k, options.top_p).softmax(-1)
