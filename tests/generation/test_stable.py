"""Stable sampling does no work twice. That it draws as published: `tests/reference/test_stable.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from star_cli.generation import filtering
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.generation.stable import EARLY_STEPS, STEPS
from tests.models.builders import SIDES, text, tiny_quantizer, tiny_transformer

OPTIONS = SamplingOptions(guidance=2.0, top_k=9, top_p=0.9)


def test_what_the_steps_of_the_ordinary_head_share_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_transformer(stable_head=True, stable_blocks=1, stable_from=len(SIDES) - 1)
    found: list[tuple[int, ...]] = []
    probabilities_of = filtering.probabilities_of

    def counted(logits: Tensor, *rest: Any) -> Tensor:
        found.append(tuple(logits.shape))
        return probabilities_of(logits, *rest)

    monkeypatch.setattr(filtering, "probabilities_of", counted)
    draw(model, tiny_quantizer(), text(1), text(1, 9), SIDES, OPTIONS, random_generators([0]))
    assert len(found) == (len(SIDES) - 1) + 1 + (STEPS - EARLY_STEPS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prepared_draws_are_those_of_each_step_alone(temperature: float) -> None:
    options = SamplingOptions(top_k=9, top_p=0.9, temperature=temperature)
    logits = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    together, alone = random_generators([1, 2]), random_generators([1, 2])
    draws = filtering.prepare_draws(logits, options)
    for _ in range(3):
        tokens, sureness = draws(together)
        own_tokens, own_sureness = filtering.prepare_draws(logits, options)(alone)
        assert torch.equal(tokens, own_tokens)
        assert torch.equal(sureness, own_sureness)
