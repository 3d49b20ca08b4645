"""The stable head's stage: with the blocks frozen, it learns to draw hidden tokens of the last scales from the visible
ones (STAR, causal-driven stable sampling).

Letters: B images, L tokens of the schedule, l tokens of the refined scales, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import Config
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.stable_head import StableHead
from star_cli.models.text import TextEncoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.batch_reader import BatchReader
from star_cli.training.initialise import initialise_stable
from star_cli.training.noise import Chance
from star_cli.training.optimizers import linear_weights, places_and_offsets
from star_cli.training.preview import draw_images, save_grid, save_prompts, usual_prompts
from star_cli.training.stage import Stage, model_settings
from star_cli.training.star import PREVIEW
from star_cli.training.star_batches import StarBatch, StarSource

StableLoss = Literal["hidden", "published"]
VISIBLE_LOGIT = 10.0  # of the published loss's extra class, where a token is visible


@dataclass(frozen=True, kw_only=True)
class StableStageConfig(Config):
    """What the stable head learns from and by."""

    scenes: int = 4096
    """Generated scenes in the token cache, at each resolution; any other data is not counted here."""
    drop_text: float = 0.1
    """Share of captions replaced by the empty prompt: the head is guided as the blocks are (STAR)."""
    loss: StableLoss = "hidden"
    """"hidden": cross-entropy of the hidden tokens. "published": hidden tokens compete with one more class besides, of
    logit 0, and visible ones add a constant."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all codes; with "hidden" alone."""

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("drop_text", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if self.loss == "published" and self.label_smoothing:
            raise OptionError("the published loss has no label smoothing", 'set loss = "hidden"')


class StableStage(Stage):
    """The stable head alone learns; transformer, tokenizer and text encoder are no part of the stage's state."""

    name = "stable"
    needs_whole = True  # the head is a part of the frozen transformer, which computes with it
    source: StarSource

    def __init__(
        self,
        transformer: StarTransformer,
        config: StableStageConfig,
        schedules: dict[int, ScaleSchedule],
        vqvae: MultiScaleVQVAE,
        text_encoder: TextEncoder,
        source: StarSource,
        name: str = "stable",
        seed: int = 0,
    ):
        """Freeze the transformer's blocks; its stable head, see `add_stable_head`, is what learns."""
        super().__init__()
        if transformer.stable is None:
            raise OptionError("these weights have no head for stable sampling", "add one: stable_head = true")
        first = transformer.config.stable_from
        for resolution, schedule in schedules.items():
            if len(schedule) <= first:
                raise OptionError(
                    f"stable_from {first} refines none of the {len(schedule)} scales at {resolution} px",
                    f"lower it to {len(schedule) - 1} to refine the last one",
                )
        self.name = name
        self.config = config
        self.schedules = schedules
        self.source = source
        self.seed = seed
        transformer.eval().requires_grad_(False)
        self.head = transformer.stable.requires_grad_(True)
        self._frozen = (vqvae, text_encoder, transformer)  # a tuple keeps them out of the stage's parameters
        self.reader = BatchReader(vqvae, text_encoder, schedules)  # no module, for the same reason

    @property
    def transformer(self) -> StarTransformer:
        """The whole model: frozen blocks and the head that learns."""
        return self._frozen[2]

    def loss(self, batch: StarBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        """Cross-entropy of hidden tokens; accuracy and loss among them, of each refined scale too.

        Raises:
            OptionError: the batch holds no refined scale.
        """
        vqvae, _, transformer = self._frozen
        whole = self.schedules[batch.resolution]
        schedule = whole.prefix(batch.scales)
        refined = range(transformer.config.stable_from, len(schedule))
        if not refined:
            raise OptionError(f"a batch of {batch.scales} scales holds none from stable_from {refined.start} on")
        first = schedule.offsets[refined.start]
        rows, device = batch.rows or range(len(batch)), self.head.start_position.device
        visible = Chance(self.name, self.seed, step).visible_tokens(rows, schedule.length - first).to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            tokens, condition = self.reader.read(batch)
            maps = [tokens[:, whole.slice(scale)] for scale in range(batch.scales)]
            teacher_input = vqvae.quantizer.teacher_input(maps, whole)
            true = tokens[:, first:]  # (B, l)
            codes = vqvae.quantizer.codebook(true) * visible[..., None]  # (B, l, Z)
        prompted = transformer.prompt(condition)  # with gradients: the head's text token is part of it
        with torch.no_grad():
            hidden = transformer.hidden_states(prompted, teacher_input, schedule)[:, first:]
        logits = transformer.stable_logits(codes, hidden, prompted, schedule, refined)  # (B, l, V)
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = stable_loss(logits, true, visible, schedule.length, self.config.loss, smoothing)
        figures = stable_figures(logits.detach(), true, ~visible, schedule, refined)
        return loss, figures | self.unreadable_figure(batch.skipped)

    def hidden_matrices(self) -> list[torch.nn.Parameter]:
        """The linear layers inside the head's blocks."""
        return linear_weights(self.head.blocks)

    def undecayed(self) -> list[torch.nn.Parameter]:
        """The head's positions and levels, and the offsets of its shared modulations."""
        return places_and_offsets(self.head)

    def units(self) -> list[torch.nn.Module]:
        """The head's blocks."""
        return list(self.head.blocks)

    def tokens(self, batch: StarBatch, step: int) -> int:
        """Tokens of the refined scales, visible ones too."""
        offsets = self.schedules[batch.resolution].offsets
        return len(batch) * (offsets[batch.scales] - offsets[self.transformer.config.stable_from])

    def settings(self) -> dict[str, Any]:
        """The whole transformer and all scales, too."""
        return {**super().settings(), **model_settings(self.transformer.config, self.schedules)}

    @cached_property
    def _usual_prompts(self) -> list[str]:
        return usual_prompts(self.source, 8)

    def preview(self, path: Path) -> None:
        """Up to eight prompts at each resolution, above without the head and below with it."""
        prompts = self._usual_prompts
        save_prompts(prompts, path)
        for resolution in self.schedules:
            both = [self.draw(prompts, resolution, replace(PREVIEW, stable=stable)) for stable in (False, True)]
            save_grid(torch.cat(both), path.with_stem(f"{path.stem}-{resolution}"), columns=len(prompts))

    def draw(self, prompts: Sequence[str], resolution: int, options: SamplingOptions) -> Tensor:
        """Images of some prompts, (n, 3, H, W), seed 0."""
        vqvae, text_encoder, transformer = self._frozen
        return draw_images(transformer, vqvae, text_encoder, prompts, self.schedules[resolution], options)


def stable_loss(
    logits: Tensor, tokens: Tensor, visible: Tensor, length: int, kind: StableLoss, label_smoothing: float = 0.0
) -> Tensor:
    """The head's loss, a mean over images.

    Args:
        logits: (B, l, V).
        tokens: the true ones, (B, l).
        visible: those that the head was shown, (B, l) bool.
        length: L of the schedule; the published loss weights each token by 1 / L, the other one by 1 / l.
        kind: see `StableStageConfig.loss`.
        label_smoothing: see `StableStageConfig`.
    """
    if kind == "hidden":
        losses = _losses(logits, tokens, label_smoothing)
        return (losses * ~visible).sum(1).mean() / tokens.shape[1]
    seen = visible.float()[..., None]
    wider = torch.cat([logits * (1 - seen), VISIBLE_LOGIT * seen], dim=-1)  # (B, l, V + 1)
    losses = _losses(wider, torch.where(visible, logits.shape[-1], tokens))
    return losses.sum(1).mean() / length


def _losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing)
    return flat.view_as(targets)


def stable_figures(
    logits: Tensor, tokens: Tensor, hidden: Tensor, schedule: ScaleSchedule, refined: range
) -> dict[str, Any]:
    """Loss and accuracy per hidden token, of all refined scales together and of each; 0 where none is hidden.

    Args:
        logits: (B, l, V).
        tokens: the true ones, (B, l).
        hidden: those that count, (B, l) bool.
        schedule: all scales.
        refined: those that the l tokens are of.
    """
    losses, right = _losses(logits, tokens) * hidden, (logits.argmax(-1) == tokens) & hidden
    figures: dict[str, Any] = {"per token": losses.sum() / hidden.sum().clamp(min=1)}
    first = schedule.offsets[refined.start]
    for scale in refined:
        part = slice(schedule.offsets[scale] - first, schedule.offsets[scale + 1] - first)
        count = hidden[:, part].sum().clamp(min=1)
        figures[f"side {schedule.sides[scale]}"] = right[:, part].sum() / count
        figures[f"loss side {schedule.sides[scale]}"] = losses[:, part].sum() / count
    return figures


def add_stable_head(
    transformer: StarTransformer, first_scale: int, blocks: int = 3, version: Literal["1024", "new"] = "1024"
) -> StarTransformer:
    """The same model with a fresh stable head; one that it has already is left behind.

    Args:
        transformer: is left as it was; the two share the tensors of the blocks.
        first_scale: first scale, counted from 0, that the head draws (`stable_from`).
        blocks: of the head.
        version: how it is used (`stable_version`).
    """
    config = replace(
        transformer.config, stable_head=True, stable_from=first_scale, stable_blocks=blocks, stable_version=version
    )
    with torch.device("meta"):
        wider = StarTransformer(config)
    kept = {key: tensor for key, tensor in transformer.state_dict().items() if not key.startswith("stable.")}
    wider.stable = StableHead(config)
    initialise_stable(wider.stable)
    wider.load_state_dict(
        kept | {f"stable.{key}": tensor for key, tensor in wider.stable.state_dict().items()}, strict=True, assign=True
    )
    return wider.train(transformer.training)
