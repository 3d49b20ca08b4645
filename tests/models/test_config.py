from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given

from star_cli.errors import OptionError
from star_cli.models.config import Config, TextEncoderConfig, TransformerConfig, VQVAEConfig
from star_cli.models.transformer import StarTransformer
from tests.models.builders import TINY, TINY_VQVAE, changed, laws, transformer_changes

TEXT = TextEncoderConfig(kind="t5", width=2048, max_tokens=120, pooling="mean_with_padding", clean_captions=True)
CLASSES: dict[str, Any] = {"conditioning": "class", "cross_attention": False}


@pytest.mark.parametrize("config", [TINY, TINY_VQVAE, TEXT], ids=lambda config: type(config).__name__)
def test_config_comes_back_from_json(config: Config) -> None:
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@laws
@given(transformer_changes())
def test_every_variant_comes_back_from_json(changes: dict[str, Any]) -> None:
    config = changed(**changes)
    assert TransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_from_before_the_switches_is_the_model_it_was() -> None:
    old = {"depth": 2, "width": 32, "heads": 2, "codebook_size": 16, "code_dim": 6, "levels": 8, "text_width": 12}
    assert TransformerConfig.from_dict(old) == TINY
    names = set(StarTransformer(TINY).state_dict())
    outside = {name for name in names if not name.startswith("blocks.")}
    parts = ("text_to_start", "code_to_width", "head")
    linear = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert outside == linear | {"start_position", "level_embedding.weight"}
    assert not any("modulation" in name for name in names)


def test_unknown_field_is_named_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="VQVAEConfig has no field colour, shape") as refused:
        VQVAEConfig.from_dict({"shape": 1, "colour": 2})
    assert "codebook_size" in str(refused.value.hint)


def test_missing_field_is_named() -> None:
    with pytest.raises(OptionError, match=r"TransformerConfig: .*'heads'"):
        TransformerConfig.from_dict({"depth": 1, "width": 8, "levels": 2})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 30, "heads": 4}, "width 30 must be divisible by 4 heads"),
        ({"width": 12, "heads": 2}, "2-D RoPE needs a head width divisible by 4, not 6"),
        ({"depth": 0}, "depth, width, heads and levels must be positive"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be positive, not -1.0"),
        ({"position": "learned"}, "learned positions need their number"),
        ({"position": "sine"}, "position must be one of rope, learned, sincos, none, not sine"),
        (
            {"position": "sincos", "width": 30},
            "2-D sines and cosines need a width divisible by 4, not 30",
        ),
        (
            {"modulation": "prompt"},
            "modulation must be one of none, level, class, class_shared, text, text_shared, not prompt",
        ),
        ({"modulation": "class"}, "modulation by class needs conditioning by class"),
        (CLASSES | {"modulation": "text"}, "modulation by text needs conditioning by text"),
        (CLASSES | {"text_start": False}, "text_start off needs conditioning by text: a class has no other way in"),
        (
            {"text_start": False, "cross_attention": False},
            "without text_start, cross-attention and modulation by text no prompt reaches the model",
        ),
        ({"conditioning": "class"}, "cross-attention needs text: a class has no states to look at"),
    ],
)
def test_transformer_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        changed(**changes)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"codebook_size": 0}, "a codebook needs at least one code of at least one channel"),
        ({"multipliers": ()}, "multipliers must be positive"),
        ({"groups": 0}, "channels, patch and groups must be positive, blocks at least 0"),
        ({"groups": -1}, "channels, patch and groups must be positive, blocks at least 0"),
        ({"channels": 6}, "widths [6, 12] must be divisible by 4 groups"),
        ({"phi_count": 0}, "phi_count 0 needs phi_scales, the number of scales"),
    ],
)
def test_tokenizer_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError) as refused:
        VQVAEConfig(**(TINY_VQVAE.to_dict() | changes))
    assert str(refused.value) == sentence


def test_text_encoder_that_cannot_be_is_refused() -> None:
    with pytest.raises(OptionError, match="kind must be one of clip, open_clip, t5, not bert"):
        TextEncoderConfig(kind="bert", width=8)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="a text encoder needs a width and room for at least two tokens"):
        TextEncoderConfig(kind="clip", width=8, max_tokens=1)


def test_defaults_are_the_published_tokenizer() -> None:
    assert VQVAEConfig().factor == 16
    assert VQVAEConfig(channels=32, multipliers=(1, 1, 1), patch=4).factor == 16


def test_softmax_scale_without_normalisation_is_the_published_quarter() -> None:
    assert changed(l2_norm=True).softmax_scale == 1
    assert changed(l2_norm=False).softmax_scale == 0.25 / math.sqrt(16)
