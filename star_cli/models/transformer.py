"""The scale-wise transformer: tokens of one scale in, logits of the same scale out (STAR; VAR, section 3.1).

Letters: B rows (images, doubled under guidance), L tokens of the whole schedule, l tokens handed in, C width, V codes,
Z code width, D text width, T text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from star_cli.errors import OptionError, ShapeError
from star_cli.models.attention import AttentionMask, KeyValueStore
from star_cli.models.block import Block, Prompted
from star_cli.models.condition import ClassCondition, Condition, TextCondition
from star_cli.models.config import CrossAttentionRows, TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.stable_head import StableHead
from star_cli.models.tables import ScheduleTables

RunBlock = Callable[..., Tensor]
"""Runs a block on what its `forward` takes."""


def run_block(block: Block, *given: Any) -> Tensor:
    """The usual `RunBlock`. One function for all blocks: compiled, it is compiled once for all of them."""
    return block(*given)


class StarTransformer(nn.Module):
    """Predicts every token of the next scale at once, from the prompt and the scales so far."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width = config.width
        if config.conditioning == "text" and config.text_start:
            self.text_to_start = nn.Linear(config.text_width, width)
        if config.is_text_modulated:
            self.text_to_modulation = nn.Linear(config.text_width, width)
        if config.conditioning == "class":
            self.class_embedding = nn.Embedding(config.classes + 1, width)  # the last row stands for "no class"
        self.start_position = nn.Parameter(torch.zeros(1, 1, width))
        self.code_to_width = nn.Linear(config.code_dim, width)
        self.level_embedding = nn.Embedding(config.levels, width)
        if config.position == "learned":
            self.position_embedding = nn.Parameter(torch.zeros(1, config.learned_positions, width))
        if config.modulation == "level":
            self.level_pair = nn.Linear(2 * width, width)
        if config.modulation in ("level", "class_shared", "text_shared"):
            self.shared_modulation = nn.Linear(width, 6 * width)
        if config.is_head_modulated:
            self.head_modulation = nn.Linear(width, 2 * width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.Linear(width, config.codebook_size)
        self.stable = StableHead(config) if config.stable_head else None
        self._is_checkpointed = False
        self.flex_attention = False
        """Let flex attention skip what the block-causal mask hides, on a GPU (training)."""
        self._tables = ScheduleTables(config)

    def set_checkpointing(self, on: bool) -> None:
        """Compute what is inside a block again in the backward pass, or keep it: less memory, or less time."""
        self._is_checkpointed = on

    def set_compute_dtype(self, dtype: torch.dtype) -> None:
        """Weights and activations of the blocks in `dtype`; the heads stay float32, for their logits decide tokens."""
        self.to(dtype)
        self.head.float()
        if self.config.is_head_modulated:
            self.head_modulation.float()
        if self.stable is not None:
            self.stable.head.float()

    # -- what is computed once per picture ------------------------------------------------------------------------

    def prompt(
        self, condition: Condition, images: int | None = None, heard_rows: CrossAttentionRows | None = None
    ) -> Prompted:
        """All that follows from B prompts, or B classes, alone.

        Args:
            condition: text features or classes; under guidance the conditional rows first, then as many unconditional
                ones.
            images: how many of the rows are conditional; all when None.
            heard_rows: whose cross-attention reaches a row; as the config says when None.
        Raises:
            OptionError: words for a class model, or a class for a text model; a class that is not there.
            ShapeError: text features of another width.
        """
        if isinstance(condition, ClassCondition):
            return self.class_prompt(condition.labels)
        return self._text_prompt(condition, images or len(condition), heard_rows or self.config.cross_attention_rows)

    def _text_prompt(self, condition: TextCondition, images: int, heard_rows: CrossAttentionRows) -> Prompted:
        if self.config.conditioning != "text":
            raise OptionError("this model draws classes, not words")
        if condition.pooled.shape[-1] != self.config.text_width:
            raise ShapeError(
                f"text features are {condition.pooled.shape[-1]} wide, this model reads {self.config.text_width}"
            )
        pooled = condition.pooled.to(self.start_position.dtype)
        if self.config.text_start:
            start = self.text_to_start(pooled).float()[:, None]
        else:  # the start position alone
            start = torch.zeros(len(pooled), 1, self.config.width, device=pooled.device)
        vector = self.text_to_modulation(pooled).float() if self.config.is_text_modulated else None
        stable_start = None if self.stable is None else self.stable.start(condition.pooled)
        if not self.config.cross_attention:
            return Prompted(start, modulation_vector=vector, stable_start=stable_start)
        heard = {"per_image": len(condition), "first_image": 1, "conditional": images}[heard_rows]
        looks = [block.cross_attention for block in self._blocks() if block.cross_attention is not None]
        text = tuple(look.text_keys_values(condition.states[:heard]) for look in looks)
        return Prompted(start, text, condition.mask.bool()[:, None, None, :], heard, vector, stable_start)

    def class_prompt(self, labels: Tensor) -> Prompted:
        """Start map of B class labels, (B,) int64; `config.classes` stands for no class (VAR).

        Raises:
            OptionError: a text model, or a label out of range.
        """
        if self.config.conditioning != "class":
            raise OptionError("this model draws words, not classes")
        if bool(((labels < 0) | (labels > self.config.classes)).any()):
            raise OptionError(f"classes are numbered 0 to {self.config.classes - 1}")
        vector = self.class_embedding(labels).float()
        return Prompted(vector[:, None], modulation_vector=vector)

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
            levels = self._tables.levels(schedule, self.start_position.device)[first:last]
            added = added + self.level_embedding(levels)
        if self.config.position == "learned":
            added = added + self.position_embedding[0, first:last]
        elif self.config.position == "sincos":
            added = added + self._tables.sincos(schedule, self.start_position.device)[first:last]
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
        """Rotary table of all L tokens, (L, P, 2), see `rotation_table`; None with other positions."""
        return self._tables.rotation(schedule, self.start_position.device)

    def run_blocks(
        self,
        x: Tensor,
        prompted: Prompted,
        schedule: ScaleSchedule,
        tokens: slice | Tensor,
        mask: AttentionMask = None,
        stores: Sequence[KeyValueStore] | None = None,
        branches: Tensor | None = None,
        run: RunBlock = run_block,
    ) -> Tensor:
        """All blocks.

        Args:
            x: embedded tokens, (B, l, C).
            prompted: from `prompt` or `class_prompt`.
            schedule: all scales of the picture.
            tokens: where these l tokens stand among all L; (B, l) int64 where the rows differ, without a mask.
            mask: (l, l) in training; None in generation, where a scale sees the cache and itself.
            stores: one cache per block, or None.
            branches: as in `hidden_states`.
            run: `run_block`, or that compiled.
        Returns:
            Hidden states, (B, l, C).
        """
        table = self.rotation(schedule)
        rotation = None if table is None else table[tokens]
        if rotation is not None and rotation.ndim == 4:  # a table for each row: (B, l, P, 2), the same for every head
            rotation = rotation[:, None]
        modulation_input = self._modulation_input(prompted, schedule, tokens)
        is_checkpointed = self._is_checkpointed and stores is None and torch.is_grad_enabled()
        for index, block in enumerate(self._blocks()):
            text = prompted.text[index] if prompted.text else None
            store = stores[index] if stores is not None else None
            of_block = branches[index] if branches is not None else None
            given = (x, prompted, text, modulation_input, rotation, mask, store, of_block)
            if is_checkpointed:  # nothing in a block is random
                x = checkpoint(block, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run(block, *given)
        return x

    def _modulation_input(self, prompted: Prompted, schedule: ScaleSchedule, tokens: slice | Tensor) -> Tensor | None:
        """What the blocks' modulation starts from: None, (B, 1, C), (B, 1, 6, C) or, from levels, (l, 6, C)."""
        if self.config.modulation == "none":
            return None
        if self.config.modulation == "level":
            levels = self._tables.levels(schedule, self.start_position.device)
            own, last = self.level_embedding(levels[tokens]), self.level_embedding(levels[-1])
            vector = self.level_pair(torch.cat([own, last.expand_as(own)], dim=-1))
        else:
            if prompted.modulation_vector is None:
                raise OptionError("class modulation needs class labels")
            vector = prompted.modulation_vector[:, None].to(self.start_position.dtype)
            if self.config.has_own_modulation:
                return vector
        return self.shared_modulation(F.silu(vector)).unflatten(-1, (6, -1))

    def logits(self, hidden: Tensor, prompted: Prompted) -> Tensor:
        """Scores of the codes, (B, l, V), float32."""
        hidden = hidden.float()
        if self.config.logit_norm or self.config.is_head_modulated:
            hidden = F.layer_norm(hidden, (self.config.width,), eps=self.config.norm_eps)
        if prompted.modulation_vector is not None:
            vector = F.silu(prompted.modulation_vector)
            scale, shift = self.head_modulation(vector)[:, None].chunk(2, dim=-1)  # (B, 1, C) each
            hidden = hidden * (1 + scale) + shift
        return self.head(hidden).float()

    # -- the whole schedule at once ---------------------------------------------------------------------------------

    def forward(
        self,
        prompted: Prompted,
        teacher_input: Tensor,
        schedule: ScaleSchedule,
        keep: Tensor | None = None,
        branches: Tensor | None = None,
    ) -> Tensor:
        """Logits of every scale under teacher forcing; arguments as in `hidden_states`.

        Returns:
            (B, L, V), or (B, kept, V).
        """
        return self.logits(self.hidden_states(prompted, teacher_input, schedule, keep, branches), prompted)

    def hidden_states(
        self,
        prompted: Prompted,
        teacher_input: Tensor,
        schedule: ScaleSchedule,
        keep: Tensor | None = None,
        branches: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of every scale under teacher forcing.

        Args:
            prompted: from `prompt` or `class_prompt`, B rows.
            teacher_input: f_hat so far resized to each next side, (B, L - first, Z), see
                `MultiScaleQuantizer.teacher_input`.
            schedule: the scales.
            keep: which of the L tokens take part, (L,) bool; all when None (STAR drops some of the largest scale at
                1024 px).
            branches: how much the self-attention and the feed-forward network of each block count for each row, (depth,
                2, B); None: 1, as ever outside training (stochastic depth leaves out some and weighs up the others).
        Returns:
            (B, L, C), or (B, kept, C).
        """
        first = schedule.offsets[1]
        if teacher_input.shape[1] != schedule.length - first:
            raise ShapeError(
                f"teacher input has {teacher_input.shape[1]} tokens, the schedule {schedule.length - first}"
            )
        x = torch.cat([self.embed_start(prompted, schedule), self.embed_codes(teacher_input, schedule, first)], dim=1)
        tokens: slice | Tensor = slice(0, schedule.length)
        if keep is not None:
            tokens = keep.bool().nonzero()[:, 0].to(x.device)
            x = x[:, tokens]
        mask = self._tables.training_mask(schedule, tokens, x.device, self.flex_attention)
        return self.run_blocks(x, prompted, schedule, tokens, mask, branches=branches)

    # -- the last scales once more ----------------------------------------------------------------------------------

    def stable_logits(
        self, codes: Tensor, hidden: Tensor, prompted: Prompted, schedule: ScaleSchedule, scales: range
    ) -> Tensor:
        """The stable head's scores of some scales' codes, of which a few are known (STAR, stable sampling).

        Args:
            codes: code vectors of these scales, 0 where not known, (B or B / 2, l, Z).
            hidden: from `run_blocks`, (B, l, C).
            prompted: from `prompt`, B rows.
            schedule: all scales of the picture.
            scales: one in generation; in training all that are refined, each of which sees itself and the text token.
        Returns:
            (B, l, V), float32.
        Raises:
            OptionError: the weights have no stable head.
        """
        if self.stable is None or prompted.stable_start is None:
            raise OptionError("these weights have no head for stable sampling")
        tokens = slice(schedule.offsets[scales.start], schedule.offsets[scales.stop])
        levels = self._tables.levels(schedule, hidden.device)[tokens]
        table = self.rotation(schedule)
        # the text token does not turn, as the 1x1 map does not
        rotation = None if table is None else torch.cat([table[:1], table[tokens]])
        known = self.stable.embed(codes.repeat(len(hidden) // len(codes), 1, 1), levels)
        features, previous = (torch.cat([prompted.stable_start, part], dim=1) for part in (known, hidden))
        mask = None if len(scales) == 1 else self.stable.training_mask(levels)
        return self.stable(features, previous, rotation, mask)[:, 1:]

    def _blocks(self) -> list[Block]:
        return list(self.blocks)  # type: ignore[arg-type]  # a ModuleList forgets what it holds
