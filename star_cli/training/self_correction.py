"""Teacher forcing with the model's own mistakes: the true tokens of later scales put them right.

In drawing, a model sees scales that it drew; in plain teacher forcing, scales without a mistake. Here it draws what it
sees from some scale on, one after the other as it does for a picture, and is asked at each for the tokens that bring
f_hat nearest to the latent from where the draws have led: DAgger (arXiv 1011.0686), with the quantiser as the teacher.
Infinity does so with bits flipped at random (arXiv 2412.04431, bitwise self-correction).

Letters: B images, C code width, h w latent, L tokens of the scales trained, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from star_cli.generation.cache import make_caches
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import PerImage
from star_cli.generation.smoothing import draw_codes
from star_cli.models.condition import TextCondition
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.training.noise import Chance


def surrounding_autocast(device: torch.device) -> torch.autocast:
    """The precision set now, to go back to inside a stretch of float32."""
    kind = device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))


def first_own_scales(scales: int, share: float, chance: Chance, rows: Sequence[int]) -> Tensor:
    """From which scale on the model sees its own draws, (B,): any of them, equally often, in a share of the images.

    Args:
        scales: how many are trained; the last of them is seen by none, so that this number less 1 means: no draws.
        share: of the images that may have some.
        chance: of the step.
        rows: place of each row in the whole batch, B of them.
    """
    firsts = []
    for row in rows:
        generator = chance.generator("own scales", row)
        has_some = torch.rand((), generator=generator) < share
        first = torch.randint(scales, (), generator=generator)
        firsts.append(torch.where(has_some, first, scales - 1))
    return torch.stack(firsts)


def draw_along(
    transformer: StarTransformer,
    quantizer: MultiScaleQuantizer,
    condition: TextCondition,
    latent: Tensor,
    schedule: ScaleSchedule,
    scales: int,
    first_own: Tensor,
    options: SamplingOptions,
    randomness: PerImage,
    precision: torch.autocast,
) -> tuple[Tensor, Tensor]:
    """Quantise latents from where the model's own draws lead.

    Args:
        transformer: draws; its blocks run as they are, not compiled, for each scale has a length of its own.
        quantizer: has the codes.
        condition: of B images.
        latent: (B, C, h, w), float32.
        schedule: all scales of the resolution.
        scales: how many are trained, more than one.
        first_own: from which scale on f_hat gets what the model draws, (B,); the true codes before it.
        options: how it draws; guidance is left out.
        randomness: of B images.
        precision: of the blocks; all else is float32.
    Returns:
        The tokens asked for, those nearest to what is left of the latent, (B, L), and what the model sees before each
        scale but the first, as `MultiScaleQuantizer.teacher_input` has it, (B, L - first scale, C).
    """
    options = replace(options, guidance=0.0)
    caches = make_caches(transformer.config.depth, schedule.offsets[scales - 1])
    with precision:
        prompted = transformer.prompt(condition)
    seen: list[Tensor] = []

    def draw(scale: int) -> Tensor:
        with precision, torch.compiler.set_stance("force_eager"):
            if scale == 0:
                x = transformer.embed_start(prompted, schedule)
            else:
                x = transformer.embed_codes(seen[-1], schedule, schedule.offsets[scale])
            hidden = transformer.run_blocks(x, prompted, schedule, schedule.slice(scale), stores=caches)
            logits = transformer.logits(hidden, prompted)  # (B, l of the scale, V), float32
        return draw_codes(logits, quantizer, scale, schedule, options, randomness)[1]

    def add(scale: int, nearest: Tensor, f_hat: Tensor) -> Tensor:
        side = schedule.sides[scale]
        if scale > 0:
            seen.append(quantizer.next_input(f_hat, side))
        true = quantizer.look_up(nearest, side)
        if scale == scales - 1:  # nothing looks at it
            return true
        is_own = (scale >= first_own).to(true.device)[:, None, None, None]
        return torch.where(is_own, draw(scale), true)

    asked = [tokens for tokens, _ in islice(quantizer.encode_scales(latent, schedule, add), scales)]
    return torch.cat(asked, dim=1), torch.cat(seen, dim=1)
