"""Stage 2: the transformer learns to draw, by cross-entropy over all scales under a block-causal mask (STAR; VAR, 3.1).

Letters: B images, L tokens of the schedule, V codes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star_cli.data.reader import read_rows
from star_cli.data.source import CaptionedImages
from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import PerImage
from star_cli.models.condition import TextCondition
from star_cli.models.config import Config, TransformerConfig
from star_cli.models.float32 import exact_float32
from star_cli.models.flops import training_flops
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.batch_reader import BatchReader
from star_cli.training.initialise import initialise, initialise_head
from star_cli.training.noise import Chance
from star_cli.training.optimizers import linear_weights, places_and_offsets
from star_cli.training.preview import draw_images, save_grid, save_prompts, usual_prompts
from star_cli.training.self_correction import draw_along, first_own_scales, surrounding_autocast
from star_cli.training.stage import Stage, model_settings
from star_cli.training.star_batches import StarBatch, StarSource
from star_cli.training.star_loss import ScaleWeight, overall, scale_loss
from star_cli.training.star_sources import PixelBatches
from star_cli.training.trackers import Means

PREVIEW = SamplingOptions(guidance=2.0, top_k=100, top_p=0.95, stable=False)
"""How previews are drawn: a stable head learns after the blocks, in a stage of its own."""
PREVIEWS = 8
"""How many prompts they show when nobody says which."""
EVALUATED_AT_ONCE = 8
"""Held-out pictures in one pass."""


@dataclass(frozen=True, kw_only=True)
class StarStageConfig(Config):
    """What stage 2 learns from and by."""

    scenes: int
    """Generated scenes in the token cache that the stage makes, at each resolution, or fewer built-in ones where the
    steps draw fewer; captions are written anew each time. Other pictures are encoded as they are used, unless
    `data.cache` says where their tokens are."""
    drop_text: float = 0.1
    """Share of captions replaced by the empty prompt, for guidance (STAR)."""
    scale_weight: ScaleWeight = "side"
    """Weight of a scale in the loss: its number of tokens (as published), or its side: small scales count more."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all codes."""
    token_noise: float = 0.0
    """Share of tokens replaced by random codes in what the model sees of the scales so far; it is still asked for the
    true ones, and learns to put earlier mistakes right."""
    own_draws: float = 0.0
    """Share of pictures of which the model sees its own draws, as `sampling` of the recipe says but without guidance,
    from some scale on; it is asked for the tokens that make up for its mistakes (`self_correction.py`)."""
    drop_path: float = 0.0
    """Stochastic depth (VAR: 0.1): how often the last block's self-attention and feed-forward network are left out for
    an image at depth 24; other depths in proportion, earlier blocks less, the first never."""
    keep_tokens: int = 0
    """Tokens that take part where a schedule has more: the others are left out of the last scale at random, anew in
    each step (STAR at 1024 px: 8,800 of 9,451); 0: all take part."""
    whole_share: float = 0.0
    """Share of the steps, the last ones, in which all tokens take part whatever `keep_tokens` says: in drawing they do,
    and a token that has met a part of its scale alone is misled by the crowd."""
    flex_attention: bool = True
    """On a GPU, attend with kernels that skip what the block-causal mask hides."""
    preview_prompts: tuple[str, ...] = ()
    """What previews show, from seed 0; none: captions of held-out generated scenes, or some of the data's own."""

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("drop_text", "label_smoothing", "token_noise", "own_draws", "drop_path", "whole_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if self.token_noise and self.own_draws:
            raise OptionError("token_noise and own_draws are both set", "set one of them")
        if self.keep_tokens < 0:
            raise OptionError(f"keep_tokens must be at least 0, not {self.keep_tokens}")

    def check_kept(self, schedules: Mapping[int, ScaleSchedule]) -> None:
        """Do the tokens that take part reach into the last scale of each schedule?

        Raises:
            OptionError: in one they do not.
        """
        for resolution, schedule in schedules.items():
            if schedule.length > self.keep_tokens > 0 and self.keep_tokens <= schedule.offsets[-2]:
                raise OptionError(
                    f"keep_tokens {self.keep_tokens} leaves none of the last scale at {resolution} px",
                    f"keep more than {schedule.offsets[-2]}",
                )


def own_draws_need_pictures() -> OptionError:
    """For a stage that is to learn from its own draws, and from a cache."""
    return OptionError(
        "own_draws needs pictures, not their tokens",
        "set stage.scenes = 0, no data.cache, and a source by name, such as shapes:65536",
    )


def _asked_plainly(config: StarStageConfig) -> StarStageConfig:
    return replace(config, token_noise=0, own_draws=0, label_smoothing=0)


class StarStage(Stage):
    """The transformer; tokenizer and text encoder are frozen and not part of the stage's state."""

    name = "star"
    source: StarSource

    def __init__(
        self,
        model: TransformerConfig,
        config: StarStageConfig,
        schedules: dict[int, ScaleSchedule],
        vqvae: MultiScaleVQVAE,
        text_encoder: TextEncoder,
        source: StarSource,
        name: str = "star",
        seed: int = 0,
        sampling: SamplingOptions | None = None,
        held_out: CaptionedImages | None = None,
        steps: int | None = None,
    ):
        """Put the stage together.

        Args:
            model: the transformer to train.
            config: what from and by what.
            schedules: scale schedule of each resolution.
            vqvae: makes tokens; frozen.
            text_encoder: reads captions; frozen.
            source: of the batches.
            name: "star" or "finetune".
            seed: decides all that is drawn by chance.
            sampling: how pictures are drawn.
            held_out: what it is judged by; None: it is not.
            steps: of the whole run, for `whole_share`; None: it has no end.
        Raises:
            OptionError: settings that do not fit each other, the schedules or the source.
        """
        super().__init__()
        self.name = name
        self.config = config
        self.sampling = sampling or SamplingOptions()
        """How the model draws what it learns from, with `own_draws`."""
        self.schedules = schedules
        self.source = source
        self.held_out = held_out
        self.seed = seed
        self.drop_path = config.drop_path * model.depth / 24
        self.whole_step = None if steps is None else steps - round(config.whole_share * steps)
        self._check_fit()
        self.transformer = StarTransformer(model)
        initialise(self.transformer)
        if known := source.known_tokens():
            initialise_head(self.transformer, vqvae.quantizer.codebook.weight, known)
        self.transformer.flex_attention = config.flex_attention
        if self.transformer.stable is not None:
            self.transformer.stable.requires_grad_(False)  # it has a stage of its own
        self._frozen = (vqvae, text_encoder)  # a tuple keeps them out of the stage's parameters
        self.reader = BatchReader(vqvae, text_encoder, schedules)  # no module, for the same reason

    def _check_fit(self) -> None:
        if self.drop_path >= 1:
            raise OptionError(f"drop_path {self.config.drop_path} would leave out the last block for good")
        if self.config.own_draws and not isinstance(self.source, PixelBatches):
            raise own_draws_need_pictures()
        self.config.check_kept(self.schedules)

    def loss(self, batch: StarBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Weighted cross-entropy; accuracy and loss of each scale beside it."""
        vqvae, _ = self._frozen
        whole = self.schedules[batch.resolution]
        schedule = whole.prefix(batch.scales)
        chance, rows = Chance(self.name, self.seed, step), batch.rows or range(len(batch))
        # chance and smoothing teach; a model in evaluation is asked the plain question
        config = self.config if self.training else _asked_plainly(self.config)
        precision = surrounding_autocast(self._device)
        with torch.no_grad(), exact_float32(self._device):
            condition = self.reader.condition(batch).to(self._device)
            if config.own_draws and batch.scales > 1:
                tokens, teacher_input = self._with_own_draws(batch, condition, chance, precision)
            else:
                seen = tokens = self.reader.tokens(batch)
                if config.token_noise:
                    codes = vqvae.quantizer.codebook.num_embeddings
                    seen = chance.noisy_tokens(tokens, rows, config.token_noise, codes)
                maps = [seen[:, whole.slice(scale)] for scale in range(batch.scales)]
                teacher_input = vqvae.quantizer.teacher_input(maps, whole)
        keep = chance.kept_tokens(schedule, self._kept(step) if self.training else 0)
        branches = None
        if self.training and self.drop_path:
            depth = self.transformer.config.depth
            branches = chance.branch_weights(depth, rows, self.drop_path).to(self._device)
        prompted = self.transformer.prompt(condition)
        logits = self.transformer(prompted, teacher_input, schedule, keep, branches)  # (B, L or kept, V)
        loss, figures = scale_loss(logits, tokens, schedule, keep, config.scale_weight, config.label_smoothing)
        return loss, figures | self.unreadable_figure(batch.skipped)

    def _with_own_draws(
        self, batch: StarBatch, condition: TextCondition, chance: Chance, precision: torch.autocast
    ) -> tuple[Tensor, Tensor]:
        """The tokens asked for, (B, L), and what the transformer sees of the scales before them, (B, L - first, C)."""
        rows = batch.rows or range(len(batch))
        return draw_along(
            self.transformer,
            self._frozen[0].quantizer,
            condition,
            self.reader.latent(batch),
            self.schedules[batch.resolution],
            batch.scales,
            first_own_scales(batch.scales, self.config.own_draws, chance, rows),
            self.sampling,
            PerImage([chance.generator("own draws", row) for row in rows]),
            precision,
        )

    def _kept(self, step: int) -> int:
        """As many tokens take part in a step; 0: all."""
        return 0 if self.whole_step is not None and step >= self.whole_step else self.config.keep_tokens

    @property
    def _device(self) -> torch.device:
        return self.transformer.start_position.device

    def units(self) -> list[torch.nn.Module]:
        """The blocks."""
        return list(self.transformer.blocks)

    def adapted(self) -> torch.nn.Module:
        """The transformer's linear layers may take adapters."""
        return self.transformer

    def hidden_matrices(self) -> list[torch.nn.Parameter]:
        """The linear layers inside the blocks."""
        return linear_weights(self.transformer.blocks)

    def undecayed(self) -> list[torch.nn.Parameter]:
        """Positions, levels, and the offsets of shared modulations, as in VAR's training."""
        return places_and_offsets(self.transformer)

    def tokens(self, batch: StarBatch, step: int) -> int:
        """Tokens that the loss of a batch counts."""
        length = self.schedules[batch.resolution].offsets[batch.scales]
        return len(batch) * min(length, self._kept(step) or length)

    def flops(self, batch: StarBatch, step: int) -> float:
        """Floating-point operations that forward and backward of the transformer ask for."""
        _, text_encoder = self._frozen
        schedule = self.schedules[batch.resolution].prefix(batch.scales)
        kept = self._kept(step) or None
        return training_flops(self.transformer.config, schedule, len(batch), text_encoder.max_tokens, kept).total

    def settings(self) -> dict[str, Any]:
        """The transformer and all scales, too."""
        return {**super().settings(), **model_settings(self.transformer.config, self.schedules)}

    @property
    def is_judged(self) -> bool:
        """By held-out pictures, where there are any."""
        return self.held_out is not None

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and wrong tokens on held-out pictures under teacher forcing, see `overall`; of each resolution."""
        figures: dict[str, float] = {}
        for resolution in self._resolutions:
            schedule, means = self._trained_scales(resolution), Means()
            for batch in self._held_out_batches(resolution, len(schedule)):
                _, found = self.loss(batch.to(self._device), 0)
                means.add(found, len(batch))
            judged = overall(means.take(), schedule)
            figures |= {f"held-out {name} {resolution}": value for name, value in judged.items()}
        return figures

    def _held_out_batches(self, resolution: int, scales: int) -> Iterator[StarBatch]:
        assert self.held_out is not None
        for first in range(0, len(self.held_out), EVALUATED_AT_ONCE):
            rows = range(first, min(first + EVALUATED_AT_ONCE, len(self.held_out)))
            read = read_rows(self.held_out, rows, resolution, "centre", random.Random(f"evaluation {first}"))
            yield StarBatch(resolution, scales, None, read.captions, pixels=read.pixels)

    def _trained_scales(self, resolution: int) -> ScaleSchedule:
        """As many scales as any batch has: later ones are nothing but chance."""
        whole = self.schedules[resolution]
        scales = [each.scales or len(whole) for each in self.source.portions if each.resolution == resolution]
        return whole.prefix(max(scales))

    @property
    def _resolutions(self) -> list[int]:
        return sorted({portion.resolution for portion in self.source.portions})

    @cached_property
    def _usual_prompts(self) -> list[str]:
        return usual_prompts(self.source, PREVIEWS)

    def preview(self, path: Path) -> None:
        """Some prompts at each resolution; the prompts beside the pictures."""
        prompts = self.config.preview_prompts or self._usual_prompts
        save_prompts(prompts, path)
        for resolution in self._resolutions:
            images = self.draw(prompts, resolution, PREVIEW)
            save_grid(images, path.with_stem(f"{path.stem}-{resolution}"), columns=4)

    def draw(self, prompts: Sequence[str], resolution: int, options: SamplingOptions) -> Tensor:
        """Images of some prompts, (n, 3, H, W), seed 0."""
        vqvae, text_encoder = self._frozen
        return draw_images(self.transformer, vqvae, text_encoder, prompts, self.schedules[resolution], options)
