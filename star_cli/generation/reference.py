"""The scale loop with nothing clever in it, to compare the others with (STAR; VAR, algorithm 2).

Nothing is prepared, shared or left out: the text is read anew at each scale, keys and values of the scales so far are
joined each time, linear layers are `F.linear`, and whole rows of logits are sorted (`filter_by_sort`).

Letters: B images, 2B rows under guidance, l tokens of a scale.
"""

from __future__ import annotations

import torch

from star_cli.generation.drawn import Drawn, OnScale
from star_cli.generation.guidance import guide, ramped_guidance
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import Randomness
from star_cli.generation.smoothing import draw_codes
from star_cli.generation.stable import draw_stable, is_refined
from star_cli.models.attention import KeysValues
from star_cli.models.condition import Condition, stack
from star_cli.models.linear import plain_linear
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer


class JoinedKeysValues:
    """Keys and values of one block, joined anew at each scale."""

    def __init__(self) -> None:
        self._parts: list[KeysValues] = []

    def append(self, new: KeysValues) -> KeysValues:
        """See `KeyValueStore`."""
        self._parts.append(KeysValues(new.keys.to(new.values.dtype), new.values))
        keys, values = zip(*self._parts, strict=True)
        return KeysValues(torch.cat(keys, dim=2), torch.cat(values, dim=2))


@torch.inference_mode()
@plain_linear()
def draw_plainly(
    transformer: StarTransformer,
    quantizer: MultiScaleQuantizer,
    condition: Condition,
    unconditional: Condition,
    schedule: ScaleSchedule,
    options: SamplingOptions,
    randomness: Randomness,
    on_scale: OnScale | None = None,
) -> Drawn:
    """Draw the token maps of B images; arguments and errors as of `draw` (sampler.py)."""
    guided = options.guidance > 0
    rows = stack(condition, unconditional) if guided else condition
    stores = [JoinedKeysValues() for _ in range(transformer.config.depth)]
    side = schedule.last_side
    f_hat = quantizer.codebook.weight.new_zeros(len(condition), quantizer.config.code_dim, side, side)
    token_maps = []
    for scale, side in enumerate(schedule.sides):
        prompted = transformer.prompt(rows, len(condition))
        if scale == 0:
            x = transformer.embed_start(prompted, schedule)
        else:
            codes = quantizer.next_input(f_hat, side).repeat(2 if guided else 1, 1, 1)
            x = transformer.embed_codes(codes, schedule, schedule.offsets[scale])
        hidden = transformer.run_blocks(x, prompted, schedule, schedule.slice(scale), stores=stores)
        if is_refined(transformer, scale, options):
            tokens = draw_stable(transformer, quantizer, hidden, prompted, schedule, scale, options, randomness)
            added = quantizer.look_up(tokens, side)
        else:
            logits = transformer.logits(hidden, prompted)  # (B or 2B, l, V)
            if guided:
                logits = guide(logits, ramped_guidance(options.guidance, scale, schedule))
            tokens, added = draw_codes(logits, quantizer, scale, schedule, options, randomness)
        f_hat = quantizer.add_scale(f_hat, added, scale, schedule)
        token_maps.append(tokens.unflatten(1, (side, side)))
        if on_scale is not None:
            on_scale(scale + 1, len(schedule))
    return Drawn(f_hat, token_maps)
