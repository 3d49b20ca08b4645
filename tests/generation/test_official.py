"""The published code's way: which numbers are in half precision under autocast, and what its random stream draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from star_cli.generation.official import as_published
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import Official
from star_cli.generation.sampler import Drawn, draw
from star_cli.models.condition import ClassCondition, Condition
from tests.models.builders import SIDES, text, tiny_quantizer, tiny_transformer

BY_CLASS: dict[str, Any] = {
    "conditioning": "class",
    "classes": 9,
    "cross_attention": False,
    "modulation": "class",
    "position": "learned",
    "learned_positions": 21,
}
STABLE: dict[str, Any] = {"stable_head": True, "stable_blocks": 1, "stable_from": 1}


def drawn_in_half(changes: dict[str, Any], compat: str, hooks: dict[str, list[torch.dtype]] | None = None) -> Drawn:
    model = tiny_transformer(**changes)
    conditions: tuple[Condition, Condition] = (text(1), text(1, 99))
    if changes is BY_CLASS:
        conditions = (ClassCondition(torch.tensor([3])), ClassCondition(torch.tensor([9])))
    for name, seen in (hooks or {}).items():

        def note(_module: object, _given: object, result: Tensor, seen: list[torch.dtype] = seen) -> None:
            seen.append(result.dtype)

        model.get_submodule(name).register_forward_hook(note)
    options = SamplingOptions(guidance=2.0, top_k=12, compat=compat)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return draw(model, tiny_quantizer(), *conditions, SIDES, options, Official(0, "cpu"))


def test_f_hat_is_as_precise_as_in_the_published_code() -> None:
    assert drawn_in_half({}, "official").f_hat.dtype == torch.bfloat16
    assert drawn_in_half(BY_CLASS, "official").f_hat.dtype == torch.float32
    assert drawn_in_half({}, "none").f_hat.dtype == torch.float32


def test_the_residual_stream_is_float32_in_the_blocks_and_half_in_the_stable_head() -> None:
    hooks: dict[str, list[torch.dtype]] = {"blocks.1": [], "stable.blocks.0": [], "stable": []}
    drawn_in_half(STABLE, "official", hooks)
    assert set(hooks["blocks.1"]) == {torch.float32}
    assert set(hooks["stable.blocks.0"]) == {torch.bfloat16}
    assert set(hooks["stable"]) == {torch.float32}


@pytest.mark.parametrize("seed", [0, 7])
def test_the_streams_are_those_of_torch(seed: int) -> None:
    probabilities = torch.rand(1, 6, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.multinomial(probabilities[0], 1, True, generator=torch.Generator().manual_seed(seed))[:, 0]
    before = torch.get_rng_state()
    with as_published(seed, torch.device("cpu")) as randomness:
        randomness.begin_step(6)
        tokens, confidences = randomness.choose(probabilities), randomness.confidences(torch.zeros(1, 6))
    assert torch.equal(tokens[0], expected)
    own = torch.Generator().manual_seed(seed)
    torch.rand(2, 6, generator=own)  # what nothing uses
    assert torch.equal(confidences, torch.rand(1, 6, generator=own))
    assert torch.equal(torch.get_rng_state(), before)
