"""Key layouts of the published models, as data: the only place where the official short names appear.

A row says where a tensor goes and what is done to it, or that it is left out on purpose and why. Braces stand for an
index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from star_cli.errors import ModelFolderError


@dataclass(frozen=True)
class Row:
    """One kind of tensor: its official key, ours, and the reshaping in between."""

    official: str
    ours: str | None
    shape: str | None = None
    """Name of a reshaping in `RESHAPES`; None when both sides store the same shape."""
    why: str | None = None
    """Why a left-out tensor (`ours` is None) is not needed."""


RESHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda tensor: tensor.reshape(-1),  # (1, N, 1, 1) -> (N,)
    "six": lambda tensor: tensor.reshape(6, -1),  # (1, 1, 6, C) -> (6, C)
}


def _linear(official: str, ours: str) -> list[Row]:
    return [Row(f"{official}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


def _attention(official: str, ours: str) -> list[Row]:
    return [
        Row(f"{official}.scale_mul_1H11", f"{ours}.gain.log_gain", "flat"),
        Row(f"{official}.q_bias", f"{ours}.q_bias"),
        Row(f"{official}.v_bias", f"{ours}.v_bias"),
        Row(f"{official}.zero_k_bias", None, why="keys carry no bias; always zero"),
        *_linear(f"{official}.proj", f"{ours}.out"),
    ]


TRANSFORMER = [
    Row("pos_start", "start_position"),
    Row("pos_1LC", "position_embedding"),
    *_linear("word_embed", "code_to_width"),
    Row("class_emb.weight", None, why="left over from VAR; STAR never reads it"),
    Row("lvl_embed.weight", "level_embedding.weight"),
    *_linear("lvl_embed_proj", "level_pair"),
    *_linear("lvl_embed_adaln.1", "shared_modulation"),
    Row("blocks.{i}.ada_gss", "blocks.{i}.modulation_offset", "six"),
    *_attention("blocks.{i}.attn", "blocks.{i}.self_attention"),
    Row("blocks.{i}.attn.mat_qkv.weight", "blocks.{i}.self_attention.qkv.weight"),
    *_attention("blocks.{i}.cross_attn", "blocks.{i}.cross_attention"),
    Row("blocks.{i}.cross_attn.mat_q.weight", "blocks.{i}.cross_attention.q.weight"),
    Row("blocks.{i}.cross_attn.mat_kv.weight", "blocks.{i}.cross_attention.kv.weight"),
    *_linear("blocks.{i}.ffn.fc1", "blocks.{i}.feed_forward.enter"),
    *_linear("blocks.{i}.ffn.fc2", "blocks.{i}.feed_forward.leave"),
    *_linear("head_logits", "head"),
    *_linear("encoder_proj", "text_to_start"),
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
    Row("quantize.ema_vocab_hit_SV", None, why="how often each code was used in training; plays no part in drawing"),
]


def _pattern(row: Row) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(row.official)))


def from_official(state: Mapping[str, Tensor], layout: Iterable[Row]) -> dict[str, Tensor]:
    """Our keys and shapes for an official state dict.

    Raises:
        ModelFolderError: keys that no row knows.
    """
    rows = [(row, _pattern(row)) for row in layout]
    ours: dict[str, Tensor] = {}
    foreign = []
    for key, tensor in state.items():
        for row, pattern in rows:
            if match := pattern.fullmatch(key):
                if row.ours is not None:
                    name = row.ours.format(**match.groupdict())
                    ours[name] = RESHAPES[row.shape](tensor) if row.shape else tensor
                break
        else:
            foreign.append(key)
    if foreign:
        raise ModelFolderError(f"keys of no known layout: {', '.join(sorted(foreign)[:10])}")
    return ours
