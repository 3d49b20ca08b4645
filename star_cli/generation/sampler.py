"""The scale loop: hidden states, logits, guided draw, codes, f_hat, next input (STAR; VAR, algorithm 2).

Letters: B images (2B rows under guidance), C code width, W width of the blocks, h w latent, l tokens of a scale.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from star_cli.generation.cache import make_caches
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
from star_cli.models.transformer import StarTransformer, run_block


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
        recordings: of the transformer's blocks, which then run, and are played, as these say, where `options` leave
            nothing out.
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
    blocks = _Blocks(transformer, prompted, schedule, images, options, recordings)
    f_hat = torch.zeros(
        *(images, transformer.config.code_dim, schedule.last_side, schedule.last_side),
        dtype=_published_dtype(transformer, prompted) if is_official else torch.float32,
        device=prompted.start.device,
    )
    token_maps = []
    for scale, side in enumerate(schedule.sides):
        if guided and scale == blocks.late:
            guided, options = False, replace(options, guidance=0.0)
            blocks.leave_unconditional_rows()
        codes = quantizer.next_input(f_hat, side) if scale > 0 else None  # (B, l, C)
        hidden, prompted = blocks(codes, scale), blocks.prompted
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


class _Blocks:
    """The blocks of one pass, run scale after scale: as they are, compiled, played, or late on some tokens alone.

    Args:
        transformer: whose blocks.
        prompted: of B or 2B rows.
        schedule: all scales.
        images: B.
        options: of these the speed, and what rules recordings out.
        recordings: as in `draw`.
    """

    def __init__(
        self,
        transformer: StarTransformer,
        prompted: Prompted,
        schedule: ScaleSchedule,
        images: int,
        options: SamplingOptions,
        recordings: Recordings | None,
    ):
        self.prompted = prompted
        self.late = first_late_scale(options, schedule)
        """Scale from which on `options.speed` leaves something out."""
        self._transformer, self._schedule, self._images = transformer, schedule, images
        self._caches = make_caches(transformer.config.depth, schedule.offsets[-2])
        self._is_turbo = options.speed == "turbo"
        self._change: Tensor | None = None  # what the blocks made of the scale before
        self._recorded, self._run = None, run_block
        if recordings is not None and options.speed == "exact" and options.compat != "official":
            self._recorded, self._run = recordings.blocks(prompted, schedule), recordings.run_block

    def __call__(self, codes: Tensor | None, scale: int) -> Tensor:
        """What the codes of f_hat (B, l, C) become, or without them the start map: hidden states, (B or 2B, l, W)."""
        x = self._embedded(codes, scale)
        if codes is not None and self._change is not None and scale >= self.late:
            given = (self._change, self.prompted, self._schedule, scale, self._caches)
            hidden = run_pivotal(self._transformer, x, codes, *given)
        elif self._recorded is not None:
            hidden = self._recorded(x, scale)
        else:
            tokens = self._schedule.slice(scale)
            hidden = self._transformer.run_blocks(
                x, self.prompted, self._schedule, tokens, stores=self._caches, run=self._run
            )
        if self._is_turbo and scale >= self.late - 1:
            self._change = hidden[: self._images] - x[: self._images]
        return hidden

    def leave_unconditional_rows(self) -> None:
        """Go on without them; in the caches, too."""
        for cache in self._caches:
            cache.keep_rows(self._images)
        self.prompted = self.prompted.first(self._images)

    def _embedded(self, codes: Tensor | None, scale: int) -> Tensor:
        """What the blocks read: the start map, or f_hat at the side of this scale."""
        if codes is None:
            return self._transformer.embed_start(self.prompted, self._schedule)
        # conditional and unconditional rows share f_hat
        codes = codes.repeat(len(self.prompted.start) // len(codes), 1, 1)
        return self._transformer.embed_codes(codes, self._schedule, self._schedule.offsets[scale])


def _published_dtype(transformer: StarTransformer, prompted: Prompted) -> torch.dtype:
    """Of f_hat in the published code, which takes it from the start map.

    That is half precision when a linear layer made the map under autocast, float32 when it was looked up for a class.
    """
    device = prompted.start.device.type
    if transformer.config.conditioning == "text" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.float32
