"""The scale-wise transformer: tokens of one scale in, logits of the same scale out (STAR; VAR, section 3.1).

Letters: B rows (images, doubled under guidance), L tokens of the whole schedule, l tokens handed in, C width, V codes,
Z code width, D text width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import OptionError, ShapeError
from star_cli.models.attention import CrossAttention, KeysValues, KeyValueStore, SelfAttention
from star_cli.models.condition import TextCondition
from star_cli.models.config import TransformerConfig
from star_cli.models.rope import rotation_table
from star_cli.models.schedule import ScaleSchedule

NO_CHANGE = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
Modulation = Sequence[Tensor] | tuple[float, ...]
"""Two gains, two scales, two shifts, in this order: of self-attention and of the feed-forward network."""


@dataclass(frozen=True)
class Prompted:
    """All that the transformer derives from the prompts (or classes) alone, computed once per picture."""

    start: Tensor
    """The 1x1 start map before position and level are added, (B, 1, C)."""
    text: tuple[KeysValues, ...] = ()
    """Text keys and values of each block; empty without cross-attention."""
    text_mask: Tensor | None = None
    """(B, 1, 1, T), True for tokens of the prompt."""
    heard: int = 0
    """Rows whose own text is looked at; the other rows repeat what these got."""
    class_vector: Tensor | None = None
    """(B, C), for class modulation."""


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.enter = nn.Linear(config.width, hidden)
        self.leave = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, l, C) -> (B, l, C)."""
        return self.leave(F.gelu(self.enter(x.to(self.enter.weight.dtype)), approximate="tanh"))


class Block(nn.Module):
    """x += self-attention; x += cross-attention; x += feed-forward; each behind a LayerNorm without gain and bias."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config) if config.cross_attention else None
        self.feed_forward = FeedForward(config)
        if config.modulation == "class":
            self.modulation = nn.Linear(config.width, 6 * config.width)
        elif config.modulation in ("class_shared", "level"):
            self.modulation_offset = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)

    def _modulation(self, vector: Tensor | None) -> Modulation:
        """The six modulations, each broadcastable to (B, l, C), from what `StarTransformer._modulation_input` made."""
        if vector is None:
            return NO_CHANGE
        if self.config.modulation == "class":
            six = self.modulation(F.silu(vector)).unflatten(-1, (6, -1))
        else:  # the projection was shared by all blocks; each adds its own offset
            six = vector + self.modulation_offset
        return six.unbind(-2)

    def forward(
        self,
        x: Tensor,
        prompted: Prompted,
        text: KeysValues | None,
        modulation_input: Tensor | None,
        rotation: Tensor | None,
        mask: Tensor | None,
        store: KeyValueStore | None,
    ) -> Tensor:
        """Residual stream in and out, (B, l, C) float32; arguments as in `SelfAttention` and `Prompted`."""
        gain1, gain2, scale1, scale2, shift1, shift2 = self._modulation(modulation_input)
        normed = self._norm(x) * (1 + scale1) + shift1
        x = x + gain1 * self.self_attention(normed, rotation, mask, store)
        if self.cross_attention is not None and text is not None and prompted.text_mask is not None:
            heard = prompted.heard
            looked = self.cross_attention(self._norm(x[:heard]), text, prompted.text_mask[:heard])
            x = x + (looked if heard == len(x) else looked.repeat(len(x) // heard, 1, 1))
        return x + gain2 * self.feed_forward(self._norm(x) * (1 + scale2) + shift2)

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.config.width,), eps=self.config.norm_eps)


class StarTransformer(nn.Module):
    """Predicts every token of the next scale at once, from the prompt and the scales so far."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.width
        if config.conditioning == "text":
            self.text_to_start = nn.Linear(config.text_width, width)
        else:
            self.class_embedding = nn.Embedding(config.classes + 1, width)  # the last row stands for "no class"
        self.start_position = nn.Parameter(torch.zeros(1, 1, width))
        self.code_to_width = nn.Linear(config.code_dim, width)
        self.level_embedding = nn.Embedding(config.levels, width)
        if config.position == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(1, config.learned_positions, width))
        if config.modulation == "level":
            self.level_pair = nn.Linear(2 * width, width)
        if config.modulation in ("level", "class_shared"):
            self.shared_modulation = nn.Linear(width, 6 * width)
        if config.conditioning == "class":
            self.head_modulation = nn.Linear(width, 2 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.Linear(width, config.codebook_size)
        self._tables: dict[tuple[ScaleSchedule, torch.device], Tensor] = {}

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Weights and activations of the blocks in `dtype`; the head stays float32, for its logits decide tokens."""
        self.to(dtype)
        self.head.float()

    # -- what is computed once per picture ------------------------------------------------------------------------

    def prompt(self, condition: TextCondition, images: int | None = None) -> Prompted:
        """Start map and text keys/values of B prompts.

        Args:
            condition: text features; under guidance the conditional rows first, then as many unconditional ones.
            images: how many of the rows are conditional; all when None.
        """
        if condition.pooled.shape[-1] != self.config.text_width:
            raise ShapeError(
                f"text features are {condition.pooled.shape[-1]} wide, this model reads {self.config.text_width}"
            )
        start = self.text_to_start(condition.pooled.to(self.text_to_start.weight.dtype)).float()[:, None]
        if not self.config.cross_attention:
            return Prompted(start)
        rows = len(condition)
        heard = {"per_image": rows, "first_image": 1, "conditional": images or rows}[self.config.cross_attention_rows]
        looks = [block.cross_attention for block in self._blocks() if block.cross_attention is not None]
        text = tuple(look.text_keys_values(condition.states[:heard]) for look in looks)
        return Prompted(start, text, condition.mask.bool()[:, None, None, :], heard)

    def class_prompt(self, labels: Tensor) -> Prompted:
        """Start map of B class labels, (B,) int64; `config.classes` stands for no class (VAR)."""
        vector = self.class_embedding(labels).float()
        return Prompted(vector[:, None], class_vector=vector)

    # -- tokens in --------------------------------------------------------------------------------------------------

    def embed_start(self, prompted: Prompted, schedule: ScaleSchedule) -> Tensor:
        """The first scale's input, (B, l, C)."""
        x = prompted.start.expand(-1, schedule.sizes[0], -1) + self.start_position
        return x + self._level_and_position(schedule, 0, schedule.offsets[1])

    def embed_codes(self, codes: Tensor, schedule: ScaleSchedule, first: int) -> Tensor:
        """Input of the tokens from position `first` on.

        Args:
            codes: f_hat so far, resized to each next side, (B, l, Z).
            schedule: all scales of the picture.
            first: position of the first of these tokens among all L.
        Returns:
            (B, l, C), float32.
        """
        x = self.code_to_width(codes.to(self.code_to_width.weight.dtype)).float()
        return x + self._level_and_position(schedule, first, first + codes.shape[1])

    def _level_and_position(self, schedule: ScaleSchedule, first: int, last: int) -> Tensor:
        """What each token's place adds to its input, (l, C)."""
        self._check_schedule(schedule)
        added = torch.zeros((), device=self.start_position.device)
        if self.config.level_in_input:
            levels = schedule.levels()[first:last].to(self.start_position.device)
            added = added + self.level_embedding(levels)
        if self.config.position == "learned":
            added = added + self.position_embedding[0, first:last]
        return added

    def _check_schedule(self, schedule: ScaleSchedule) -> None:
        if schedule.first_level + len(schedule) > self.config.levels:
            raise OptionError(
                f"this model has {self.config.levels} levels, the schedule uses {schedule.first_level + len(schedule)}"
            )
        if self.config.position == "learned" and schedule.length > self.config.learned_positions:
            raise OptionError(
                f"this model knows {self.config.learned_positions} positions, the schedule has {schedule.length}"
            )

    # -- through the blocks -----------------------------------------------------------------------------------------

    def rotation(self, schedule: ScaleSchedule) -> Tensor | None:
        """Rotary table of all L tokens, (L, P) complex64; None with learned positions."""
        if self.config.position != "rope":
            return None
        key = (schedule, self.start_position.device)
        if key not in self._tables:
            with torch.inference_mode(False):  # a table first made while drawing must serve training too
                table = rotation_table(schedule, self.config.head_width, self.config.rope_theta, self.config.rope_norm)
                self._tables[key] = table.to(key[1])
        return self._tables[key]

    def run_blocks(
        self,
        x: Tensor,
        prompted: Prompted,
        schedule: ScaleSchedule,
        tokens: slice | Tensor,
        mask: Tensor | None = None,
        stores: Sequence[KeyValueStore] | None = None,
    ) -> Tensor:
        """All blocks.

        Args:
            x: embedded tokens, (B, l, C).
            prompted: from `prompt` or `class_prompt`.
            schedule: all scales of the picture.
            tokens: where these l tokens stand among all L.
            mask: (l, l) in training; None in generation, where a scale sees the cache and itself.
            stores: one cache per block, or None.
        Returns:
            Hidden states, (B, l, C).
        """
        table = self.rotation(schedule)
        rotation = None if table is None else table[tokens]
        modulation_input = self._modulation_input(prompted, schedule, tokens)
        for index, block in enumerate(self._blocks()):
            text = prompted.text[index] if prompted.text else None
            store = stores[index] if stores is not None else None
            x = block(x, prompted, text, modulation_input, rotation, mask, store)
        return x

    def _modulation_input(self, prompted: Prompted, schedule: ScaleSchedule, tokens: slice | Tensor) -> Tensor | None:
        """What the blocks' modulation starts from: None, (B, 1, C), (B, 1, 6, C) or, from levels, (l, 6, C)."""
        if self.config.modulation == "none":
            return None
        if self.config.modulation == "level":
            levels = schedule.levels().to(self.start_position.device)
            own, last = self.level_embedding(levels[tokens]), self.level_embedding(levels[-1])
            vector = self.level_pair(torch.cat([own, last.expand_as(own)], dim=-1))
        else:
            if prompted.class_vector is None:
                raise OptionError("class modulation needs class labels")
            vector = prompted.class_vector[:, None].to(self.start_position.dtype)
            if self.config.modulation == "class":
                return vector
        return self.shared_modulation(F.silu(vector)).unflatten(-1, (6, -1))

    def logits(self, hidden: Tensor, prompted: Prompted) -> Tensor:
        """Scores of the codes, (B, l, V), float32."""
        hidden = hidden.float()
        if self.config.logit_norm or self.config.conditioning == "class":
            hidden = F.layer_norm(hidden, (self.config.width,), eps=self.config.norm_eps)
        if prompted.class_vector is not None:
            vector = F.silu(prompted.class_vector.to(self.head_modulation.weight.dtype))
            scale, shift = self.head_modulation(vector).float()[:, None].chunk(2, dim=-1)  # (B, 1, C) each
            hidden = hidden * (1 + scale) + shift
        return self.head(hidden).float()

    # -- the whole schedule at once ---------------------------------------------------------------------------------

    def forward(
        self, prompted: Prompted, teacher_input: Tensor, schedule: ScaleSchedule, keep: Tensor | None = None
    ) -> Tensor:
        """Logits of every scale under teacher forcing.

        Args:
            prompted: from `prompt` or `class_prompt`, B rows.
            teacher_input: f_hat so far resized to each next side, (B, L - first, Z), see
                `MultiScaleQuantizer.teacher_input`.
            schedule: the scales.
            keep: which of the L tokens take part, (L,) bool; all when None (STAR drops some of the largest scale at
                1024 px).
        Returns:
            (B, L, V), or (B, kept, V).
        """
        first = schedule.offsets[1]
        if teacher_input.shape[1] != schedule.length - first:
            raise ShapeError(
                f"teacher input has {teacher_input.shape[1]} tokens, the schedule {schedule.length - first}"
            )
        x = torch.cat([self.embed_start(prompted, schedule), self.embed_codes(teacher_input, schedule, first)], dim=1)
        mask = schedule.block_causal_mask().to(x.device)
        tokens: slice | Tensor = slice(0, schedule.length)
        if keep is not None:
            tokens = keep.bool().nonzero()[:, 0]
            x, mask = x[:, tokens], mask[tokens][:, tokens]
        return self.logits(self.run_blocks(x, prompted, schedule, tokens, mask), prompted)

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]  # a ModuleList forgets what it holds
