"""Stage 2: the transformer learns to draw, by cross-entropy over all scales under a block-causal mask (STAR; VAR, 3.1).

Letters: B images, L tokens of the schedule, V codes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.data import shapes
from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.models.attention import CrossAttention, SelfAttention
from star_cli.models.block import FeedForward
from star_cli.models.config import Config, TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.loop import BatchSource, Stage
from star_cli.training.preview import save_grid


@dataclass(frozen=True, kw_only=True)
class Portion(Config):
    """One kind of batch of the mixture."""

    resolution: int
    """Pixels per side."""
    batch_size: int
    """Images in such a batch."""
    share: float
    """How often it comes, relative to the other portions."""
    scales: int = 0
    """Train on the first scales alone; 0: on all. Earlier scales never see later ones: exact, and much cheaper."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.share <= 0 or self.scales < 0:
            raise OptionError("a portion needs batch_size of at least 1, a positive share, and scales of at least 0")


@dataclass(frozen=True, kw_only=True)
class StarStageConfig(Config):
    """What stage 2 learns from and by."""

    scenes: int
    """Scenes in the token cache, at each resolution; captions are written anew each time."""
    drop_text: float = 0.1
    """Share of captions replaced by the empty prompt, for guidance (STAR)."""
    scale_weight: Literal["token", "side"] = "side"
    """Weight of a scale in the loss: its number of tokens (as published), or its side: small scales count more."""


@dataclass(frozen=True)
class StarBatch:
    """Tokens and captions of B images at one resolution."""

    resolution: int
    scales: int
    tokens: Tensor
    """(B, L of these scales), int64."""
    captions: list[str]


class TokenSource(BatchSource):
    """Batches from the token cache, with fresh captions."""

    def __init__(
        self,
        cache: dict[int, Tensor],
        schedules: dict[int, ScaleSchedule],
        portions: Sequence[Portion],
        drop_text: float,
        seed: int,
    ):
        self.cache, self.schedules, self.portions, self.drop_text, self.seed = (
            cache,
            schedules,
            portions,
            drop_text,
            seed,
        )

    def batch(self, step: int) -> StarBatch:
        """The batch of one step; the scene in row i of the cache is the one with seed i."""
        rng = random.Random(f"star {self.seed} {step}")
        (portion,) = rng.choices(self.portions, [portion.share for portion in self.portions])
        rows = rng.sample(range(len(self.cache[portion.resolution])), portion.batch_size)
        schedule = self.schedules[portion.resolution]
        scales = portion.scales or len(schedule)
        tokens = self.cache[portion.resolution][rows, : schedule.offsets[scales]].long()
        captions = [self._caption(row, rng) for row in rows]
        return StarBatch(portion.resolution, scales, tokens, captions)

    def _caption(self, row: int, rng: random.Random) -> str:
        if rng.random() < self.drop_text:
            return ""
        return shapes.caption(shapes.sample(row)[0], rng)


class StarStage(Stage):
    """The transformer; tokenizer and text encoder are frozen and not part of the stage's state."""

    name = "star"

    def __init__(
        self,
        model: TransformerConfig,
        config: StarStageConfig,
        schedules: dict[int, ScaleSchedule],
        vqvae: MultiScaleVQVAE,
        text_encoder: TextEncoder,
        source: TokenSource,
        name: str = "star",
    ):
        super().__init__()
        self.name = name
        self.config = config
        self.schedules = schedules
        self.source = source
        self.transformer = StarTransformer(model)
        initialise(self.transformer)
        if source.cache:
            initialise_head(self.transformer, vqvae.quantizer.codebook.weight, source.cache.values())
        self._frozen = (vqvae, text_encoder)  # a tuple keeps them out of the stage's parameters

    def loss(self, batch: StarBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        """Weighted cross-entropy; accuracy of each scale beside it."""
        vqvae, text_encoder = self._frozen
        whole = self.schedules[batch.resolution]
        schedule = whole.prefix(batch.scales)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            maps = [batch.tokens[:, whole.slice(scale)] for scale in range(batch.scales)]
            teacher_input = vqvae.quantizer.teacher_input(maps, whole)
            condition = text_encoder.encode(batch.captions, rows=len(batch.captions))
        logits = self.transformer(self.transformer.prompt(condition), teacher_input, schedule)  # (B, L, V)
        losses = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten(), reduction="none").view_as(batch.tokens)
        loss = (losses * self._token_weights(schedule)).sum(1).mean()
        right = (logits.detach().argmax(-1) == batch.tokens).float()
        metrics = {f"side {side}": right[:, schedule.slice(i)].mean().item() for i, side in enumerate(schedule.sides)}
        return loss, {"per token": losses.detach().mean().item(), **metrics}

    def hidden_matrices(self) -> list[torch.nn.Parameter]:
        """The linear layers inside the blocks."""
        return [parameter for parameter in self.transformer.blocks.parameters() if parameter.ndim == 2]

    def tokens_attending(self, batch: StarBatch) -> int:
        """Tokens of the scales in the batch."""
        return batch.tokens.shape[1]

    def _token_weights(self, schedule: ScaleSchedule) -> Tensor:
        """Weight of each token, (L,), summing to 1."""
        if self.config.scale_weight == "token":
            return torch.full((schedule.length,), 1 / schedule.length)
        sides = torch.tensor(schedule.sides, dtype=torch.float32)
        return torch.repeat_interleave(1 / sides, torch.tensor(schedule.sizes)) / sides.sum()

    def preview(self, path: Path) -> None:
        """Eight held-out prompts, one row for each resolution."""
        prompts = [shapes.sample(shapes.HELD_OUT_SEED + index)[1] for index in range(8)]
        path.with_suffix(".txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
        for portion_resolution in sorted({portion.resolution for portion in self.source.portions}):  # type: ignore[attr-defined]
            images = self.draw(prompts, portion_resolution, SamplingOptions(guidance=2.0, top_k=100, top_p=0.95))
            save_grid(images, path.with_stem(f"{path.stem}-{portion_resolution}"), columns=4)

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], resolution: int, options: SamplingOptions) -> Tensor:
        """Images of some prompts, (n, 3, H, W), seed 0."""
        vqvae, text_encoder = self._frozen
        empty = text_encoder.encode([""] * len(prompts))
        drawn = draw(
            self.transformer,
            vqvae.quantizer,
            text_encoder.encode(prompts),
            empty,
            self.schedules[resolution],
            options,
            random_generators([0] * len(prompts)),
        )
        return vqvae.decode(drawn.f_hat)


@torch.no_grad()
def initialise(transformer: StarTransformer) -> None:
    """Weights before training, as in VAR: truncated normals, branches scaled down with depth, a small head."""
    config = transformer.config
    std = (1 / config.width / 3) ** 0.5
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            torch.nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.trunc_normal_(transformer.start_position, std=std)
    for module in transformer.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.out.weight.div_((2 * config.depth) ** 0.5)
        elif isinstance(module, FeedForward):
            module.leave.weight.div_((2 * config.depth) ** 0.5)
    transformer.head.weight.mul_(0.02)


@torch.no_grad()
def initialise_head(transformer: StarTransformer, codebook: Tensor, caches: Iterable[Tensor]) -> None:
    """Give codes that lie close together similar rows in the head, so that what is learned of one serves the others.

    Args:
        transformer: whose head is overwritten: the codebook in a random rotation, rows of length 1 in the mean square.
        codebook: (V, Z).
        caches: tokens, each (n, L). Codes that come in none begin with a row of zeros.
    """
    used = torch.zeros(len(codebook), dtype=torch.bool)
    for tokens in caches:
        used[tokens.unique().long()] = True
    rotation = torch.randn(codebook.shape[1], transformer.config.width) / transformer.config.width**0.5
    length = codebook[used].square().sum(1).mean().sqrt()
    transformer.head.weight.copy_(codebook / length @ rotation)
    transformer.head.weight[~used] = 0


@torch.no_grad()
def copy_levels(transformer: StarTransformer, source: ScaleSchedule, target: ScaleSchedule) -> None:
    """Level rows of a new schedule from those of a trained one: each scale takes the row of the nearest side."""
    weight = transformer.level_embedding.weight
    trained = weight.clone()
    for scale in range(len(target)):
        nearest = min(range(len(source)), key=lambda known: abs(source.sides[known] - target.sides[scale]))
        weight[target.first_level + scale] = trained[source.first_level + nearest]
