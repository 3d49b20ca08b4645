"""Layout rows of the parts of published models that `golden.py` builds."""

from __future__ import annotations

from star_cli.checkpoints.layouts import TRANSFORMER, Row

_COMMON = [row for row in TRANSFORMER if row.official != "class_emb.weight"]
_BLOCK = [row for row in _COMMON if row.official.startswith(("blocks.{i}.attn.", "blocks.{i}.ffn."))]


def _linear(official: str, ours: str) -> list[Row]:
    return [Row(f"{official}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


STAR = [
    *TRANSFORMER,
    Row("pos_start_last", "stable.start_position"),
    *_linear("word_embed_head", "stable.code_to_width"),
    Row("lvl_embed_2.weight", "stable.level_embedding.weight"),
    *_linear("encoder_proj2", "stable.text_to_start"),
    *_linear("head_proj", "stable.join"),
    *(Row(f"feat_extract_{row.official}", f"stable.{row.ours}" if row.ours else None, row.shape) for row in _BLOCK),
    *_linear("head_logits2", "stable.head"),
]
VAR = [
    *_COMMON,
    Row("class_emb.weight", "class_embedding.weight"),
    *_linear("shared_ada_lin.1", "shared_modulation"),
    *_linear("blocks.{i}.ada_lin.1", "blocks.{i}.modulation"),
    *_linear("head_nm.ada_lin.1", "head_modulation"),
    *_linear("head", "head"),
    Row("lvl_1L", None, why="follows from the schedule"),
    Row("attn_bias_for_masking", None, why="follows from the schedule"),
]
