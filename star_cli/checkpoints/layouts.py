"""Key layouts of the published models, as data: the only place where the official short names appear.

A row says where a tensor goes and what is done to it, or that it is left out on purpose, why, and what to put back when
the official layout is written. Braces stand for an index. `translate.py` has the way back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from star_cli.errors import ModelFolderError
from star_cli.models.config import TransformerConfig, VQVAEConfig


@dataclass(frozen=True)
class Row:
    """One kind of tensor: its official key, ours, and the reshaping in between."""

    official: str
    ours: str | None
    shape: str | None = None
    """Name of a reshaping in `RESHAPES`; None when both sides store the same shape."""
    why: str | None = None
    """Why a left-out tensor (`ours` is None) is not needed."""
    beside: str | None = None
    """Of a left-out tensor: our key beside which an official file holds it."""
    refill: str | None = None
    """Of a left-out tensor: name in `translate.REFILLS` of what its values follow from."""
    kept: bool = False
    """Of a left-out tensor: it does not follow from anything, so a converted folder keeps it aside for the way back."""
    free_rows: bool = False
    """Of a left-out tensor: an official file may hold another number of rows than this model would."""


Reshape = Callable[[Tensor], Tensor]

RESHAPES: dict[str, tuple[Reshape, Reshape]] = {  # official to ours, ours to official
    "flat": (lambda tensor: tensor.reshape(-1), lambda tensor: tensor.reshape(1, -1, 1, 1)),  # (1, N, 1, 1), (N,)
    "six": (lambda tensor: tensor.reshape(6, -1), lambda tensor: tensor.reshape(1, 1, 6, -1)),  # (1, 1, 6, C), (6, C)
}


def _linear(official: str, ours: str) -> list[Row]:
    return [Row(f"{official}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def _attention(official: str, ours: str) -> list[Row]:
    return [
        Row(f"{official}.scale_mul_1H11", f"{ours}.gain.log_gain", "flat"),
        Row(f"{official}.q_bias", f"{ours}.q_bias"),
        Row(f"{official}.v_bias", f"{ours}.v_bias"),
        Row(
            f"{official}.zero_k_bias",
            None,
            why="keys carry no bias; always zero",
            beside=f"{ours}.q_bias",
            refill="zeros",
        ),
        *_linear(f"{official}.proj", f"{ours}.out"),
    ]


def _block(official: str, ours: str) -> list[Row]:
    """Self-attention and feed-forward network."""
    return [
        *_attention(f"{official}.attn", f"{ours}.self_attention"),
        Row(f"{official}.attn.mat_qkv.weight", f"{ours}.self_attention.qkv.weight"),
        *_linear(f"{official}.ffn.fc1", f"{ours}.feed_forward.enter"),
        *_linear(f"{official}.ffn.fc2", f"{ours}.feed_forward.leave"),
    ]


_BOTH = [
    Row("pos_start", "start_position"),
    Row("pos_1LC", "position_embedding"),
    *_linear("word_embed", "code_to_width"),
    Row("lvl_embed.weight", "level_embedding.weight"),
    *_block("blocks.{i}", "blocks.{i}"),
    Row("blocks.{i}.ada_gss", "blocks.{i}.modulation_offset", "six"),
]

STAR = [
    *_BOTH,
    *_linear("lvl_embed_proj", "level_pair"),
    *_linear("lvl_embed_adaln.1", "shared_modulation"),
    *_attention("blocks.{i}.cross_attn", "blocks.{i}.cross_attention"),
    Row("blocks.{i}.cross_attn.mat_q.weight", "blocks.{i}.cross_attention.q.weight"),
    Row("blocks.{i}.cross_attn.mat_kv.weight", "blocks.{i}.cross_attention.kv.weight"),
    *_linear("head_logits", "head"),
    *_linear("encoder_proj", "text_to_start"),
    Row(
        "class_emb.weight",
        None,
        why="left over from VAR; STAR never reads it",
        beside="start_position",
        refill="class rows",
        kept=True,
    ),
    # the refinement head of causal-driven stable sampling
    Row("pos_start_last", "stable.start_position"),
    *_linear("word_embed_head", "stable.code_to_width"),
    Row("lvl_embed_2.weight", "stable.level_embedding.weight"),
    *_linear("encoder_proj2", "stable.text_to_start"),
    *_linear("head_proj", "stable.join"),
    *_block("feat_extract_blocks.{i}", "stable.blocks.{i}"),
    *_linear("head_logits2", "stable.head"),
]
STABLE_HEAD = "feat_extract_blocks."
"""What a key of the refinement head's blocks begins with: its presence tells that a file has the head."""

VAR = [
    *_BOTH,
    Row("class_emb.weight", "class_embedding.weight"),
    *_linear("shared_ada_lin.1", "shared_modulation"),
    *_linear("blocks.{i}.ada_lin.1", "blocks.{i}.modulation"),
    *_linear("head_nm.ada_lin.1", "head_modulation"),
    *_linear("head", "head"),
    Row("lvl_1L", None, why="follows from the schedule", beside="start_position", refill="levels"),
    Row("attn_bias_for_masking", None, why="follows from the schedule", beside="start_position", refill="mask"),
]


def _residual_block(official: str, ours: str) -> list[Row]:
    return [
        *(
            row
            for part in ("norm1", "conv1", "norm2", "conv2")
            for row in _linear(f"{official}.{part}", f"{ours}.{part}")
        ),
        *_linear(f"{official}.nin_shortcut", f"{ours}.shortcut"),
    ]


def _pixel_attention(official: str, ours: str) -> list[Row]:
    parts = {"norm": "norm", "qkv": "qkv", "proj_out": "out"}
    return [row for theirs, mine in parts.items() for row in _linear(f"{official}.{theirs}", f"{ours}.{mine}")]


def _half(official: str, levels: str, resize: str) -> list[Row]:
    """Rows of the encoder or the decoder."""
    return [
        *_linear(f"{official}.conv_in", f"{official}.stem"),
        *_residual_block(f"{official}.{levels}.{{i}}.block.{{j}}", f"{official}.levels.{{i}}.blocks.{{j}}"),
        *_pixel_attention(f"{official}.{levels}.{{i}}.attn.{{j}}", f"{official}.levels.{{i}}.attention.{{j}}"),
        *_linear(f"{official}.{levels}.{{i}}.{resize}.conv", f"{official}.levels.{{i}}.resize.conv"),
        *_residual_block(f"{official}.mid.block_1", f"{official}.middle.block1"),
        *_pixel_attention(f"{official}.mid.attn_1", f"{official}.middle.attention"),
        *_residual_block(f"{official}.mid.block_2", f"{official}.middle.block2"),
        *_linear(f"{official}.norm_out", f"{official}.norm"),
        *_linear(f"{official}.conv_out", f"{official}.head"),
    ]


VQVAE = [
    *_half("encoder", "down", "downsample"),
    *_half("decoder", "up", "upsample"),
    *_linear("quant_conv", "before_quantizer"),
    *_linear("post_quant_conv", "after_quantizer"),
    Row("quantize.embedding.weight", "quantizer.codebook.weight"),
    *_linear("quantize.quant_resi.qresi_ls.{i}", "quantizer.phi.{i}.conv"),  # shared by neighbouring scales
    *_linear("quantize.quant_resi.{i}", "quantizer.phi.{i}.conv"),  # one per scale
    *_linear("quantize.quant_resi.qresi", "quantizer.phi.0.conv"),  # one for all
    Row(
        "quantize.ema_vocab_hit_SV",
        None,
        why="how often each code was used in training; plays no part in drawing",
        beside="quantizer.codebook.weight",
        refill="code use",
        kept=True,
        free_rows=True,
    ),
]


def layout_of(config: TransformerConfig | VQVAEConfig) -> list[Row]:
    """The rows by which the official code stores a model of this config: each of our keys has one row."""
    if isinstance(config, TransformerConfig):
        return VAR if config.conditioning == "class" else STAR
    phi = "quantize.quant_resi."
    official = {0: f"{phi}{{i}}", 1: f"{phi}qresi"}.get(config.phi_count, f"{phi}qresi_ls.{{i}}")
    return [row for row in VQVAE if not row.official.startswith(phi) or row.official.rpartition(".")[0] == official]


def from_official(state: Mapping[str, Tensor], layout: Iterable[Row]) -> dict[str, Tensor]:
    """Our keys and shapes for an official state dict.

    Raises:
        ModelFolderError: keys that no row knows.
    """
    rows = [(row, pattern_of(row.official)) for row in layout]
    ours: dict[str, Tensor] = {}
    foreign = []
    for key, tensor in state.items():
        for row, pattern in rows:
            if match := pattern.fullmatch(key):
                if row.ours is not None:
                    name = row.ours.format(**match.groupdict())
                    ours[name] = RESHAPES[row.shape][0](tensor) if row.shape else tensor
                break
        else:
            foreign.append(key)
    if foreign:
        raise ModelFolderError(f"keys of no known layout: {', '.join(sorted(foreign)[:10])}")
    return ours


def pattern_of(key: str) -> re.Pattern[str]:
    """What a row's key matches; its braces become groups."""
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(key)))
