"""Attention against an oracle in plain float64 loops over heads and tokens."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.models import attention
from star_cli.models.attention import CrossAttention, KeysValues, SelfAttention
from tests.models.builders import SIDES, TEXT_TOKENS, changed, lively, text

ROWS, TOKENS = 2, SIDES.length


def attend(queries: Tensor, keys: Tensor, values: Tensor, may_look: Tensor, log_gain: Tensor | None) -> Tensor:
    """One head of one row, float64: (l, K), (m, K), (m, K), (l, m) -> (l, K)."""
    result = torch.zeros_like(queries)
    for i, query in enumerate(queries):
        seen = [j for j in range(len(keys)) if may_look[i, j]]
        if log_gain is None:
            scores = [0.25 / math.sqrt(len(query)) * float(query @ keys[j]) for j in seen]
        else:
            gain = min(math.exp(float(log_gain)), 100.0)
            scores = [gain * float(query @ keys[j]) / float(query.norm() * keys[j].norm()) for j in seen]
        weights = [math.exp(score - max(scores)) for score in scores]
        for weight, j in zip(weights, seen, strict=True):
            result[i] += weight / sum(weights) * values[j]
    return result


def heads_of(vectors: Tensor, heads: int) -> list[Tensor]:
    return list(vectors.chunk(heads, dim=-1))


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_self_attention_is_the_textbook_formula(l2_norm: bool, masked: bool) -> None:
    config = changed(l2_norm=l2_norm)
    layer = lively(SelfAttention(config))
    if layer.gain.log_gain is not None:
        layer.gain.log_gain.data[0] = 6.0  # above the clamp
    x = torch.randn(ROWS, TOKENS, config.width, generator=torch.Generator().manual_seed(1))
    mask = SIDES.block_causal_mask() if masked else torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    ours = layer(x, None, mask if masked else None, None)

    wide = layer.double()
    for row in range(ROWS):
        queries, keys, values = (x[row].double() @ wide.qkv.weight.T).chunk(3, dim=-1)
        queries, values = queries + wide.q_bias, values + wide.v_bias  # keys have no bias
        parts = zip(*(heads_of(each, config.heads) for each in (queries, keys, values)), strict=True)
        gains = [None] * config.heads if wide.gain.log_gain is None else list(wide.gain.log_gain)
        mixed = torch.cat([attend(*part, mask, gain) for part, gain in zip(parts, gains, strict=True)], dim=-1)
        torch.testing.assert_close(ours[row].double(), wide.out(mixed), rtol=0, atol=2e-5)


@pytest.mark.parametrize("l2_norm", [True, False])
@torch.no_grad()
def test_cross_attention_is_the_textbook_formula(l2_norm: bool) -> None:
    config = changed(l2_norm=l2_norm)
    layer = lively(CrossAttention(config))
    prompts = text(ROWS, seed=3)
    x = torch.randn(ROWS, TOKENS, config.width, generator=torch.Generator().manual_seed(1))
    ours = layer(x, layer.text_keys_values(prompts.states), prompts.mask[:, None, None])

    wide = layer.double()
    for row in range(ROWS):
        queries = x[row].double() @ wide.q.weight.T + wide.q_bias
        keys, values = (prompts.states[row].double() @ wide.kv.weight.T).chunk(2, dim=-1)
        parts = zip(*(heads_of(each, config.heads) for each in (queries, keys, values + wide.v_bias)), strict=True)
        gains = [None] * config.heads if wide.gain.log_gain is None else list(wide.gain.log_gain)
        may_look = prompts.mask[row].expand(TOKENS, TEXT_TOKENS)
        mixed = torch.cat([attend(*part, may_look, gain) for part, gain in zip(parts, gains, strict=True)], dim=-1)
        torch.testing.assert_close(ours[row].double(), wide.out(mixed), rtol=0, atol=2e-5)


def test_gain_is_clamped_at_100_and_learns_no_further() -> None:
    layer = lively(SelfAttention(changed()))
    assert layer.gain.log_gain is not None
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    layer.gain.log_gain.data = torch.tensor([math.log(100), 1.0])
    at_clamp = layer(x, None, None, None)
    layer.gain.log_gain.data = torch.tensor([9.0, 1.0])
    above = layer(x, None, None, None)
    torch.testing.assert_close(above, at_clamp)
    above.square().sum().backward()
    gradient = layer.gain.log_gain.grad
    assert gradient is not None
    assert gradient[0] == 0
    assert gradient[1] != 0


def test_length_of_the_input_of_queries_and_keys_does_not_matter_when_normalised() -> None:
    layer = lively(SelfAttention(changed()))
    layer.q_bias.data.zero_()
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    expected = layer(x, None, None, None)
    layer.qkv.weight.data[:64] *= 7
    torch.testing.assert_close(layer(x, None, None, None), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_plain_attention_equals_the_fused_one_forward_and_backward(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, TOKENS, 8, generator=generator).requires_grad_() for _ in range(3))
    mask = SIDES.block_causal_mask() if masked else None
    ways = (
        attention._attend_plainly(queries, KeysValues(keys, values), mask, 0.3),
        F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=0.3),
    )
    weight = torch.randn(ways[0].shape, generator=generator)
    plain, fused = (torch.autograd.grad((way * weight).sum(), (queries, keys, values)) for way in ways)
    torch.testing.assert_close(ways[0], ways[1])
    for ours, theirs in zip(plain, fused, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_in_half_precision_differs_by_its_rounding_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(2, 3, TOKENS, 8, generator=generator) for _ in range(3))
    exact = attention.attend(queries, KeysValues(keys, values), None, 0.3)
    half = [part.bfloat16().requires_grad_() for part in (queries, keys, values)]
    trained = attention.attend(half[0], KeysValues(half[1], half[2]), None, 0.3)
    assert trained.dtype == torch.bfloat16
    assert (trained.float() - exact).abs().max() < 0.03
