"""The scale loop: hidden states, logits, guided draw, codes, f_hat, next input (STAR; VAR, algorithm 2).

Letters: B images (2B rows under guidance), C code width, h w latent, l tokens of a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from star_cli.generation.cache import KVCache, make_caches
from star_cli.generation.drawn import Drawn, OnScale
from star_cli.generation.guidance import guide, ramped_guidance
from star_cli.generation.late import first_late_scale, run_pivotal
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import Randomness
from star_cli.generation.recorded import Recordings
from star_cli.generation.reference import draw_plainly
from star_cli.generation.smoothing import draw_codes
from star_cli.generation.stable import draw_stable, is_refined
from star_cli.models.block import Prompted
from star_cli.models.condition import Condition, stack
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer


@torch.inference_mode()
def draw(
    transformer: StarTransformer,
    quantizer: MultiScaleQuantizer,
    condition: Condition,
    unconditional: Condition,
    schedule: ScaleSchedule,
    options: SamplingOptions,
    randomness: Randomness,
    on_scale: OnScale | None = None,
    recordings: Recordings | None = None,
) -> Drawn:
    """Draw the token maps of B images.

    With `options.compat` "official" f_hat is added up, and cross-attention heard, as in the published code; whoever
    calls sets autocast and hands in the random stream.

    Args:
        transformer: predicts the tokens.
        quantizer: adds each scale to f_hat.
        condition: text features of the B prompts, or B classes.
        unconditional: text features of the empty or negative prompt, or no class, B rows.
        schedule: sides of the token maps.
        options: guidance, filters, stable sampling, speed.
        randomness: of the B images; nothing else is random.
        on_scale: progress callback.
        recordings: of the transformer's blocks, which are then played where `options` leave nothing out.
    Raises:
        OptionError: stable sampling is asked for and the weights cannot do it; words for a class model, or the reverse.
    """
    if options.speed == "reference":
        return draw_plainly(transformer, quantizer, condition, unconditional, schedule, options, randomness, on_scale)
    images = len(condition)
    guided = options.guidance > 0
    is_official = options.compat == "official"
    rows = stack(condition, unconditional) if guided else condition
    prompted = transformer.prompt(rows, images, "first_image" if is_official else None)
    leaves_nothing_out = options.speed == "exact" and not is_official
    recorded = recordings.blocks(prompted, schedule) if recordings is not None and leaves_nothing_out else None
    caches = make_caches(transformer.config.depth, schedule.offsets[-2])
    f_hat = torch.zeros(
        *(images, transformer.config.code_dim, schedule.last_side, schedule.last_side),
        dtype=_published_dtype(transformer, prompted) if is_official else torch.float32,
        device=prompted.start.device,
    )
    late = first_late_scale(options, schedule)
    change: Tensor | None = None  # what the blocks made of the scale before
    token_maps = []
    for scale, side in enumerate(schedule.sides):
        if guided and scale == late:
            guided, options = False, replace(options, guidance=0.0)
            prompted = _conditional_rows(prompted, images, caches)
        codes = quantizer.next_input(f_hat, side) if scale > 0 else None  # (B, l, C)
        x = _scale_input(transformer, prompted, codes, scale, schedule)
        if codes is not None and change is not None and scale >= late:
            hidden = run_pivotal(transformer, x, codes, change, prompted, schedule, scale, caches)
        elif recorded is not None:
            hidden = recorded(x, scale)
        else:
            hidden = transformer.run_blocks(x, prompted, schedule, schedule.slice(scale), stores=caches)
        if options.speed == "turbo" and scale >= late - 1:
            change = hidden[:images] - x[:images]
        if is_refined(transformer, scale, options):
            tokens = draw_stable(transformer, quantizer, hidden, prompted, schedule, scale, options, randomness)
            added = quantizer.look_up(tokens, side)
        else:
            logits = transformer.logits(hidden, prompted)  # (B or 2B, l, V), float32: decides tokens
            if guided:
                logits = guide(logits, ramped_guidance(options.guidance, scale, schedule))
            tokens, added = draw_codes(logits, quantizer, scale, schedule, options, randomness)
        f_hat = quantizer.add_scale(f_hat, added, scale, schedule).to(f_hat.dtype)
        token_maps.append(tokens.unflatten(1, (side, side)))
        if on_scale is not None:
            on_scale(scale + 1, len(schedule))
    return Drawn(f_hat, token_maps)


def _published_dtype(transformer: StarTransformer, prompted: Prompted) -> torch.dtype:
    """Of f_hat in the published code, which takes it from the start map.

    That is half precision when a linear layer made the map under autocast, float32 when it was looked up for a class.
    """
    device = prompted.start.device.type
    if transformer.config.conditioning == "text" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.float32


def _conditional_rows(prompted: Prompted, images: int, caches: Sequence[KVCache]) -> Prompted:
    """Leave the unconditional rows behind, in the caches, too."""
    for cache in caches:
        cache.keep_rows(images)
    return prompted.first(images)


def _scale_input(
    transformer: StarTransformer, prompted: Prompted, codes: Tensor | None, scale: int, schedule: ScaleSchedule
) -> Tensor:
    """What the blocks read for one scale: the start map, or f_hat at the side of this scale."""
    if codes is None:
        return transformer.embed_start(prompted, schedule)
    codes = codes.repeat(len(prompted.start) // len(codes), 1, 1)  # conditional and unconditional rows share f_hat
    return transformer.embed_codes(codes, schedule, schedule.offsets[scale])
