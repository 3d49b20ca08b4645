"""Counted operations against torch's own counter, which watches a real pass; bytes against the weights' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.models.config import VQVAEConfig
from star_cli.models.drawing_cost import Drawing, drawing_costs
from star_cli.models.int8 import Int8Weight
from star_cli.models.linear import plain_linear
from star_cli.models.rounding import round_blocks
from star_cli.models.vqvae import Double, MultiScaleVQVAE, ResidualBlock
from tests.models.builders import SIDES, TEXT_TOKENS, TINY_VQVAE, conditions, tiny_transformer
from tests.models.test_transformer import VARIANTS

IMAGES = 2
CROSS = {name: {"cross_attention_rows": name} for name in ("conditional", "first_image")}


@pytest.mark.parametrize(("variant", "guidance"), [*((name, 2.0) for name in (*VARIANTS, *CROSS)), ("star", 0.0)])
def test_operations_of_the_scale_loop_equal_those_of_the_counter(variant: str, guidance: float) -> None:
    changes: dict[str, Any] = {**VARIANTS, **CROSS}[variant]
    model = tiny_transformer(**changes)
    quantizer = MultiScaleVQVAE(TINY_VQVAE).quantizer
    options = SamplingOptions(guidance=guidance, top_k=8)
    # the counter knows the products of this backend, and not those of the fused one on a CPU, nor oneDNN's
    with sdpa_kernel(SDPBackend.MATH), plain_linear(), FlopCounterMode(display=False) as counter:
        draw(model, quantizer, *conditions(model.config, IMAGES), SIDES, options, random_generators([0, 1]))
    costs = drawing_costs(
        Drawing(
            transformer=model.config,
            vqvae=TINY_VQVAE,
            schedule=SIDES,
            images=IMAGES,
            text_tokens=TEXT_TOKENS,
            is_guided=guidance > 0,
        )
    )
    in_loop = [cost for (part, scale), cost in costs.items() if scale is not None or part == "start"]
    assert sum(cost.flops for cost in in_loop) == counter.get_total_flops()


@pytest.mark.parametrize("changes", [{}, {"multipliers": (2, 1, 3), "blocks": 2, "patch": 2}])
def test_operations_of_the_decoder_equal_those_of_the_counter(changes: dict[str, Any]) -> None:
    config = VQVAEConfig.from_dict({**TINY_VQVAE.to_dict(), **changes})
    vqvae = MultiScaleVQVAE(config).eval()
    f_hat = torch.zeros(3, config.code_dim, SIDES.last_side, SIDES.last_side)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        vqvae.decode(f_hat)
    assert _costs(vqvae=config, images=3)["decode", None].flops == counter.get_total_flops()


def test_each_scale_reads_the_weights_of_the_blocks_once_and_no_more_images_read_them_again() -> None:
    model = tiny_transformer()
    weights = sum(parameter.numel() for parameter in model.blocks[0].feed_forward.parameters() if parameter.ndim == 2)
    one, three = (_costs(images=images) for images in (1, 3))
    for scale in range(len(SIDES)):
        moved = one["feed_forward", scale].bytes - 4 * model.config.depth * weights
        assert moved > 0
        assert three["feed_forward", scale].bytes - one["feed_forward", scale].bytes == 2 * moved


def test_half_precision_halves_what_the_blocks_move_and_leaves_the_head() -> None:
    full, half = _costs(), _costs(item_size=2)
    quantised = _costs(item_size=2, weight_size=1)
    for scale in range(len(SIDES)):
        assert 2 * half["self_attention", scale].bytes == full["self_attention", scale].bytes
        assert half["head", scale] == full["head", scale]
        assert quantised["self_attention", scale].bytes < half["self_attention", scale].bytes


def test_quantised_are_the_layers_that_int8_rounds_and_no_others() -> None:
    model = tiny_transformer(modulation="text")
    round_blocks(model, "int8")
    numbers = sum(buffer.numel() for buffer in model.buffers() if isinstance(buffer, Int8Weight))
    plain, quantised = (_costs(transformer=model.config, is_guided=False, weight_size=size) for size in (None, 1))
    for scale, tokens in enumerate(SIDES.sizes):
        changed = [part for part, at in plain if at == scale and plain[part, at] != quantised[part, at]]
        assert changed == ["self_attention", "cross_attention", "feed_forward"]
        pairs = [(plain[part, scale], quantised[part, scale]) for part in changed]
        assert sum(before.bytes - after.bytes for before, after in pairs) == (4 - 1) * numbers
        assert sum(cost.work["linears"] for cost, _ in pairs) == 2 * tokens * numbers
        assert all(before.work == after.work for before, after in pairs)
    once = [place for place in plain if place[1] is None]
    assert all(plain[place] == quantised[place] for place in once)
    assert not any("linears" in plain[place].work for place in plain if place[0] not in changed)


def test_quantised_in_the_decoder_are_the_convolutions_of_blocks_and_doublings() -> None:
    weights = [
        conv.weight
        for part in MultiScaleVQVAE(TINY_VQVAE).decoder.modules()
        for conv in ([part.conv1, part.conv2] if isinstance(part, ResidualBlock) else [])
        + ([part.conv] if isinstance(part, Double) else [])
    ]
    plain, quantised = (_costs(decoder_weight_size=size)["decode", None] for size in (None, 1))
    assert plain.work == quantised.work
    assert plain.bytes - quantised.bytes == (4 - 1) * sum(weight.numel() for weight in weights)
    assert plain.work["convolutions"] > plain.work["decoder"] > 0


def test_second_sum_of_f_hat_is_left_out_where_it_is_not_made() -> None:
    costs, smooth = _costs(), _costs(is_summed_again=False)
    again = costs.pop(("quantizer", None))
    assert smooth == costs
    assert again.flops == sum(costs["quantizer", scale].flops for scale in range(len(SIDES)))


def _costs(**changes: Any) -> Any:
    given = {"transformer": tiny_transformer().config, "vqvae": TINY_VQVAE, "schedule": SIDES, "images": 1}
    return drawing_costs(Drawing(**{"text_tokens": TEXT_TOKENS, **given, **changes}))
