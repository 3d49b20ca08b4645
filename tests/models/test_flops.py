"""Analytic FLOPs against torch's own counter, which watches the real operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from star_cli.models.flops import count_parameters, training_flops
from star_cli.models.schedule import ScaleSchedule
from tests.models.builders import SIDES, TEXT_TOKENS, changed, conditions, random_input, tiny_transformer
from tests.models.test_transformer import VARIANTS


@pytest.mark.parametrize("kept", [None, 18])
@pytest.mark.parametrize("variant", [*VARIANTS, "first image"])
def test_count_equals_that_of_the_counter(variant: str, kept: int | None) -> None:
    changes: dict[str, Any] = VARIANTS.get(variant, {"cross_attention_rows": "first_image"})
    model = tiny_transformer(**changes)
    keep = None if kept is None else torch.arange(SIDES.length) < kept
    condition, _ = conditions(model.config, 3)
    # the counter knows the products of this backend, and not those of the fused one on a CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model(model.prompt(condition), random_input(3, SIDES), SIDES, keep).square().mean()
        forward = counter.get_total_flops()
        loss.backward()
    counted = training_flops(model.config, SIDES, 3, TEXT_TOKENS, kept, is_dense=True)
    assert counted.forward == forward
    assert counted.total == counter.get_total_flops()
    assert counted.tokens == 3 * (kept or SIDES.length)


def test_masked_pairs_do_not_count_for_the_use_of_the_machine() -> None:
    config = changed()
    dense, needed = (training_flops(config, SIDES, 2, TEXT_TOKENS, is_dense=is_dense) for is_dense in (True, False))
    hidden_pairs = int((~SIDES.block_causal_mask()).sum())
    products = 2 * config.depth  # scores and mixtures
    assert dense.forward - needed.forward == 2 * 2 * hidden_pairs * config.width * products
    assert dense.backward - needed.backward == 2 * (dense.forward - needed.forward)


def test_a_large_model_takes_six_operations_for_each_parameter_and_token() -> None:
    schedule = ScaleSchedule((1, 2, 3, 4, 5, 6))
    config = changed(
        depth=16,
        width=1024,
        heads=16,
        codebook_size=4096,
        code_dim=32,
        text_width=1024,
        cross_attention=False,
    )
    parameters = count_parameters(config)
    assert 200e6 < parameters < 220e6
    assert training_flops(config, schedule, 4, 77).per_token == pytest.approx(6 * parameters, rel=0.05)


def test_parameters_are_those_of_the_model() -> None:
    model = tiny_transformer()
    assert count_parameters(model.config) == sum(parameter.numel() for parameter in model.parameters())
