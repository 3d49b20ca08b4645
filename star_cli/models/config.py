"""Configs of the three models. No tensors here: a config is plain data, stored as JSON beside the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from star_cli.errors import OptionError

CrossAttentionRows = Literal["per_image", "conditional", "first_image"]
"""See `TransformerConfig.cross_attention_rows`."""


class Config:
    """What every config can do: become plain data, and come back from it with unknown fields refused."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from plain data; lists become tuples.

        Raises:
            OptionError: an unknown field, a missing one, a value of another kind, or one that the config refuses.
        """
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # every child is a dataclass
        if unknown := sorted(set(values) - known):
            raise OptionError(
                f"{cls.__name__} has no field {', '.join(unknown)}", f"known fields: {', '.join(sorted(known))}"
            )
        hints = get_type_hints(cls)
        for key, value in values.items():
            if not _is_of_kind(value, hints[key]):
                raise OptionError(f"{cls.__name__}: {key} must be {_KINDS[hints[key]]}, not {value!r}")
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        except TypeError as error:
            raise OptionError(f"{cls.__name__}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or TOML."""
        return asdict(self)  # type: ignore[call-overload]

    def _check_choices(self) -> None:
        """Refuse a value that is none of its field's choices."""
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in choices:
                raise OptionError(f"{name} must be one of {', '.join(choices)}, not {value}")


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def _is_of_kind(value: Any, hint: Any) -> bool:
    """Only plain kinds are told apart; whole numbers are numbers, truth values are none."""
    if hint is bool or isinstance(value, bool):
        return hint not in _KINDS or (hint is bool and isinstance(value, bool))
    return hint not in _KINDS or isinstance(value, int | float if hint is float else hint)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise OptionError(message)


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(Config):
    """The multi-scale VQVAE (VAR, section 3.2 and algorithms 1 and 2). Defaults are the published tokenizer."""

    codebook_size: int = 4096
    """V, number of codes; one codebook serves all scales."""
    code_dim: int = 32
    """C, width of a code and channels of the latent."""
    channels: int = 160
    """Base width of encoder and decoder."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each resolution level, times `channels`; each level after the first halves the resolution."""
    blocks: int = 2
    """Residual blocks of a level in the encoder; the decoder has one more."""
    patch: int = 1
    """Pixels folded into channels before the first convolution, per side. 1 as published; 4 makes a small one fast."""
    groups: int = 32
    """Groups of every GroupNorm."""
    phi_count: int = 4
    """Residual convolutions phi of the quantiser: 4 shared by neighbouring scales, 1 for all, 0 for one per scale."""
    phi_scales: int = 0
    """Number of convolutions when `phi_count` is 0: the scales of the only schedule such a tokenizer knows."""
    phi_ratio: float = 0.5
    """Share of the convolution in phi(h) = (1 - ratio) h + ratio conv(h)."""

    def __post_init__(self) -> None:
        _check(
            self.codebook_size > 0 and self.code_dim > 0, "a codebook needs at least one code of at least one channel"
        )
        _check(len(self.multipliers) > 0 and min(self.multipliers) > 0, "multipliers must be positive")
        _check(
            min(self.channels, self.patch, self.groups) > 0 and self.blocks >= 0,
            "channels, patch and groups must be positive, blocks at least 0",
        )
        widths = [self.channels * multiplier for multiplier in self.multipliers]
        _check(
            all(width % self.groups == 0 for width in widths),
            f"widths {widths} must be divisible by {self.groups} groups",
        )
        _check(self.phi_count > 0 or self.phi_scales > 0, "phi_count 0 needs phi_scales, the number of scales")

    @property
    def factor(self) -> int:
        """Pixels per latent cell, per side: 16 in the published tokenizer."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """The scale-wise transformer of STAR and VAR; what differs between them is a field here."""

    depth: int
    """Number of blocks."""
    width: int
    """Width of the residual stream."""
    heads: int
    """Attention heads; the published models have width / 64."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward network, times `width`."""
    norm_eps: float = 1e-6
    """Added to the variance in every LayerNorm."""

    codebook_size: int = 4096
    """V, as in the VQVAE."""
    code_dim: int = 32
    """Width of a code, as in the VQVAE."""
    levels: int
    """Rows of the level embedding: scales of the longest schedule, or of all schedules that keep rows of their own."""

    conditioning: Literal["text", "class"] = "text"
    """What the start map is made from: the pooled text (STAR) or a class label (VAR)."""
    text_width: int = 1024
    """D, width of the text features."""
    text_start: bool = True
    """The start map comes from the pooled text (STAR); off: it is a learned vector, the same for every prompt."""
    classes: int = 1000
    """Number of classes when conditioning is "class"; one more row stands for no class."""
    cross_attention: bool = True
    """Each block looks at the text states (STAR)."""
    cross_attention_rows: CrossAttentionRows = "per_image"
    """Whose cross-attention reaches a row. "per_image": its own. "first_image": that of the batch's first row, for
    every row, as in the released STAR code. "conditional": under guidance the unconditional row of an image takes over
    what its conditional row got, which equals "first_image" for one image alone and keeps images of a batch apart."""

    position: Literal["rope", "learned", "sincos", "none"] = "rope"
    """2-D RoPE (STAR), one learned vector per token of the schedule (VAR), fixed 2-D sines and cosines added to the
    input (MAE, DiT), or nothing that tells the tokens of a scale apart but their content."""
    learned_positions: int = 0
    """L of the only schedule a model with learned positions knows."""
    rope_theta: float = 10000.0
    """Base of the frequencies of "rope" and "sincos"."""
    rope_norm: float = 64.0
    """With "rope" and "sincos" every scale spans coordinates 0 to this (STAR); negative: raw token coordinates."""
    level_in_input: bool = True
    """Add the level embedding to each token of the input."""

    l2_norm: bool = True
    """Normalise queries and keys to unit length, learn a gain per head; off: softmax scale 0.25 / sqrt(head width)."""
    modulation: Literal["none", "level", "class", "class_shared", "text", "text_shared"] = "none"
    """Adaptive LayerNorm: none (STAR), from the level embedding (a STAR ablation), from the class (VAR) or the pooled
    text, by a projection of each block's own or by one that all share."""
    logit_norm: bool = True
    """LayerNorm without gain before the head (STAR)."""

    stable_head: bool = False
    """A second head that draws the last scales once more in several steps (STAR, causal-driven stable sampling)."""
    stable_blocks: int = 3
    """Blocks of that head."""
    stable_from: int = 9
    """First scale, counted from 0, that it draws: the last one at 256 and 512 px, five of them at 1024 px."""
    stable_version: Literal["1024", "new"] = "1024"
    """How it is used. "1024": eight steps a scale, of which the first five take the ordinary head's word; from scale
    13 on (counted from 0) 15 steps, all its own. "new": eight steps, all its own."""

    def __post_init__(self) -> None:
        self._check_choices()
        _check(
            min(self.depth, self.width, self.heads, self.levels) > 0, "depth, width, heads and levels must be positive"
        )
        _check(0 < self.mlp_ratio < math.inf, f"mlp_ratio must be positive, not {self.mlp_ratio}")
        _check(self.width % self.heads == 0, f"width {self.width} must be divisible by {self.heads} heads")
        _check(
            self.position != "rope" or self.head_width % 4 == 0,
            f"2-D RoPE needs a head width divisible by 4, not {self.head_width}",
        )
        _check(
            self.position != "sincos" or self.width % 4 == 0,
            f"2-D sines and cosines need a width divisible by 4, not {self.width}",
        )
        _check(self.position != "learned" or self.learned_positions > 0, "learned positions need their number")
        self._check_conditioning()

    def _check_conditioning(self) -> None:
        text = self.conditioning == "text"
        _check(text or not self.cross_attention, "cross-attention needs text: a class has no states to look at")
        _check(text or not self.stable_head, "stable sampling needs text: its head starts from the pooled feature")
        _check(
            self.stable_blocks > 0 and self.stable_from >= 0,
            "stable sampling needs at least one block, and a first scale of at least 0",
        )
        _check(not text or not self.modulation.startswith("class"), "modulation by class needs conditioning by class")
        _check(text or not self.is_text_modulated, "modulation by text needs conditioning by text")
        _check(text or self.text_start, "text_start off needs conditioning by text: a class has no other way in")
        _check(
            self.text_start or self.cross_attention or self.is_text_modulated,
            "without text_start, cross-attention and modulation by text no prompt reaches the model",
        )

    @property
    def class_count(self) -> int | None:
        """Classes that can be drawn; None when words are."""
        return self.classes if self.conditioning == "class" else None

    @property
    def is_text_modulated(self) -> bool:
        """Does the pooled text modulate blocks and head?"""
        return self.modulation in ("text", "text_shared")

    @property
    def is_head_modulated(self) -> bool:
        """Does the head have an adaptive LayerNorm of its own (VAR)?"""
        return self.conditioning == "class" or self.is_text_modulated

    @property
    def has_own_modulation(self) -> bool:
        """Has each block a projection of its own, from one vector to its six modulations?"""
        return self.modulation in ("class", "text")

    @property
    def head_width(self) -> int:
        """K, channels of one head."""
        return self.width // self.heads

    @property
    def softmax_scale(self) -> float:
        """Factor on the attention scores; the learned gain replaces it when queries and keys are normalised."""
        return 1.0 if self.l2_norm else 0.25 / math.sqrt(self.head_width)


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Config):
    """Where the text features come from."""

    kind: Literal["clip", "open_clip", "t5"]
    """CLIP through transformers, CLIP through open_clip, or T5 through transformers."""
    source: str = "text_encoder"
    """A folder (relative to the model folder, or absolute), a hub name, or for open_clip "ARCHITECTURE:PRETRAINED"."""
    width: int
    """D, width of pooled feature and states."""
    max_tokens: int = 77
    """T, tokens the encoder reads; a longer prompt is cut, a shorter one padded."""
    pooling: Literal["end_of_text", "mean_with_padding"] = "end_of_text"
    """The state at the end-of-text token (CLIP), or the mean over all positions, padding included (STAR's T5)."""
    drop_last_blocks: int = 0
    """Blocks left out at the end of the tower: 1 turns ViT-H-14's text tower into Stable Diffusion 2.1's."""
    clean_captions: bool = False
    """Clean the caption twice before T5, as the data of STAR's T5 models was."""

    def __post_init__(self) -> None:
        self._check_choices()
        _check(self.width > 0 and self.max_tokens > 1, "a text encoder needs a width and room for at least two tokens")
