"""The last scales without a draw: the mean of the codes that could be drawn, in place of one of them.

A draw takes each token of a scale by itself. Where a model is unsure, neighbours then do not fit each other, and edges
are ragged. The mean is the vector of least expected square error: soft where the model is unsure, the code itself where
it is sure. `relaxation.py` has what VAR's published code offers to the same end.

Letters: B images, l tokens of a scale, V codes, C code width.
"""

from __future__ import annotations

from torch import Tensor

from star_cli.generation.filtering import draw_tokens, probabilities_of
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import Randomness
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule


def draw_codes(
    logits: Tensor,
    quantizer: MultiScaleQuantizer,
    scale: int,
    schedule: ScaleSchedule,
    options: SamplingOptions,
    randomness: Randomness,
) -> tuple[Tensor, Tensor]:
    """Draw the tokens of a scale; on the last `options.smooth` scales f_hat gets the mean code in place of theirs.

    Args:
        logits: guided, (B, l, V), float32.
        quantizer: has the codes.
        scale: which scale.
        schedule: of the picture.
        options: temperature and filters; at temperature 0 there is one code, and nothing to average.
        randomness: of B images.
    Returns:
        Tokens as drawn, (B, l), int64, and what the scale adds to f_hat, (B, C, side, side).
    """
    side = schedule.sides[scale]
    if scale < len(schedule) - options.smooth or options.temperature == 0:
        tokens = draw_tokens(logits, options, randomness)
        return tokens, quantizer.look_up(tokens, side)
    probabilities = probabilities_of(logits, options)
    mean = probabilities @ quantizer.codebook.weight.to(logits.dtype)  # (B, l, C)
    return randomness.choose(probabilities), mean.transpose(1, 2).unflatten(2, (side, side))
