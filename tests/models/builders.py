"""Tiny models with lively random weights, and random inputs for them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from star_cli.generation.cache import make_caches
from star_cli.models.block import Prompted
from star_cli.models.condition import ClassCondition, Condition, TextCondition
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE

Model = TypeVar("Model", bound=nn.Module)

CODES, CODE_DIM, TEXT_WIDTH, TEXT_TOKENS = 16, 6, 12, 5
SIDES = ScaleSchedule((1, 2, 4))
TINY = TransformerConfig(
    depth=2, width=32, heads=2, codebook_size=CODES, code_dim=CODE_DIM, levels=8, text_width=TEXT_WIDTH
)
TINY_VQVAE = VQVAEConfig(codebook_size=CODES, code_dim=CODE_DIM, channels=8, multipliers=(1, 2), blocks=1, groups=4)

laws = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""How a law is tried on random examples: the same ones in every run."""

schedules = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(lambda sides: ScaleSchedule(tuple(sorted(sides))))
placed_schedules = st.builds(lambda schedule, first: ScaleSchedule(schedule.sides, first), schedules, st.integers(0, 4))
"""Schedules whose level rows are not the first ones of the table."""
seeds = st.integers(0, 2**31)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal random ones; a map (B, C, h, w) channels last."""
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made


@st.composite
def transformer_changes(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that tell one text-conditioned variant from another."""
    modulation = draw(st.sampled_from(["none", "level", "text", "text_shared"]))
    cross_attention = draw(st.booleans())
    must_start = not cross_attention and not modulation.startswith("text")  # else no prompt would reach the model
    return draw(_any_changes()) | {
        "cross_attention": cross_attention,
        "modulation": modulation,
        "text_start": must_start or draw(st.booleans()),
    }


@st.composite
def class_changes(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that tell one class-conditioned variant from another."""
    return draw(_any_changes()) | {
        "conditioning": "class",
        "classes": 5,
        "cross_attention": False,
        "modulation": draw(st.sampled_from(["none", "level", "class", "class_shared"])),
    }


@st.composite
def _any_changes(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 3))
    return {
        "depth": draw(st.integers(1, 2)),
        "heads": heads,
        "width": heads * draw(st.sampled_from([4, 8, 12])),
        "position": draw(st.sampled_from(["rope", "learned", "sincos", "none"])),
        "learned_positions": 64,
        "rope_norm": draw(st.sampled_from([64.0, 3.0, -1.0])),
        "level_in_input": draw(st.booleans()),
        "l2_norm": draw(st.booleans()),
        "logit_norm": draw(st.booleans()),
    }


def conditions(config: TransformerConfig, rows: int, seed: int = 0) -> tuple[Condition, Condition]:
    """What to draw, and its unconditional counterpart: random prompts beside others, or classes beside none."""
    if config.conditioning == "text":
        return text(rows, seed), text(rows, seed + 1)
    labels = torch.randint(0, config.classes, (rows,), generator=torch.Generator().manual_seed(seed))
    return ClassCondition(labels), ClassCondition(torch.full_like(labels, config.classes))


def changed(**changes: Any) -> TransformerConfig:
    return TransformerConfig(**(TINY.to_dict() | changes))


def lively(model: Model, seed: int = 0) -> Model:
    """Random weights everywhere, those that training starts at zero included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 and "codebook" not in name else 4
            noise = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            gain = parameter.ndim == 1 and name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "log_gain"))
            parameter.copy_(1 + 0.3 * noise if gain else noise)
    return model.eval()


def tiny_transformer(seed: int = 0, **changes: Any) -> StarTransformer:
    return lively(StarTransformer(changed(**changes)), seed)


def tiny_quantizer(seed: int = 0, **changes: Any) -> MultiScaleQuantizer:
    return lively(MultiScaleQuantizer(VQVAEConfig(**(TINY_VQVAE.to_dict() | changes))), seed)


def tiny_vqvae(seed: int = 0, **changes: Any) -> MultiScaleVQVAE:
    return lively(MultiScaleVQVAE(VQVAEConfig(**(TINY_VQVAE.to_dict() | changes))), seed)


def text(rows: int, seed: int = 0, tokens: int = TEXT_TOKENS) -> TextCondition:
    """Features of random prompts of random lengths; at least one token each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
    return TextCondition(
        torch.randn(rows, TEXT_WIDTH, generator=generator),
        torch.randn(rows, tokens, TEXT_WIDTH, generator=generator),
        torch.arange(tokens)[None] < lengths,
    )


def random_input(rows: int, schedule: ScaleSchedule, seed: int = 0) -> Tensor:
    """Any teacher input: what the transformer computes does not ask where it came from."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, schedule.length - schedule.sizes[0], CODE_DIM, generator=generator)


def random_tokens(rows: int, schedule: ScaleSchedule, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, CODES, (rows, size), generator=generator) for size in schedule.sizes]


@torch.no_grad()
def logits_scale_by_scale(
    model: StarTransformer, prompted: Prompted, teacher_input: Tensor, schedule: ScaleSchedule
) -> Tensor:
    """The logits of all scales as generation computes them: no mask, a cache, one scale after another."""
    caches = make_caches(model.config.depth, schedule.offsets[-2])
    parts = []
    for scale in range(len(schedule)):
        tokens = schedule.slice(scale)
        x = model.embed_start(prompted, schedule)
        if scale > 0:
            first = schedule.sizes[0]
            given = teacher_input[:, tokens.start - first : tokens.stop - first]
            x = model.embed_codes(given, schedule, tokens.start)
        parts.append(model.logits(model.run_blocks(x, prompted, schedule, tokens, stores=caches), prompted))
    return torch.cat(parts, dim=1)
