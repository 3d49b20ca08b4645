"""Top-k and top-p filters equal the published ones; the Gumbel relaxation waits for the refinement loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from star_cli.generation.cache import random_generators
from star_cli.generation.filtering import draw_tokens, filter_logits
from star_cli.generation.options import SamplingOptions
from tests.reference.golden import Golden, golden, uncovered

FILTERS = 13
TOP_K_1 = [1, 12]
TIED_ROWS = [(0, 0), (1, 2)]
LATER = ("gumbel", "gumbel_filtered")


@pytest.mark.parametrize("index", range(FILTERS))
def test_filtered_distribution(index: int) -> None:
    case = golden("sampling")
    values = case.facts["filter_cases"][index]
    ours = filter_logits(case["in/logits"], values["top_k"], values["top_p"])
    kept, probabilities = ours.isfinite().to(torch.uint8), ours.softmax(-1)
    if values["top_p"] > 0:
        _take_over_ties(case, f"{index}/kept", kept)
        _take_over_ties(case, f"{index}/probs", probabilities)
    case.compare(f"{index}/kept", kept, "tokens")
    case.compare(f"{index}/probs", probabilities, "probability")
    case.finish(str(index))


def _take_over_ties(case: Golden, key: str, ours: torch.Tensor) -> None:
    """Which of several tied codes survive top-p is up to the sort; how many do, and how likely they are, is not."""
    for row in TIED_ROWS:
        expected = case[f"out/{key}"][row]
        torch.testing.assert_close(ours[row].sort().values, expected.sort().values, rtol=0, atol=1e-6)
        ours[row] = expected


@pytest.mark.parametrize("index", TOP_K_1)
def test_with_top_k_1_the_draw_is_the_only_code_left(index: int) -> None:
    case = golden("sampling")
    values: dict[str, Any] = case.facts["filter_cases"][index]
    assert values["top_k"] == 1
    logits, kept = case["in/logits"], case[f"out/{index}/kept"].bool()
    options = SamplingOptions(top_k=1, top_p=values["top_p"] or 1.0)
    tokens = draw_tokens(logits, options, random_generators([0, 1]))
    assert kept.gather(-1, tokens[..., None]).all()  # in the tied rows, one of those left
    untied = kept.sum(-1) == 1
    assert untied.sum() > 0
    greedy = draw_tokens(logits, SamplingOptions(temperature=0), random_generators([0, 1]))
    assert torch.equal(tokens[untied], greedy[untied])
    assert torch.equal(tokens[untied], kept.int().argmax(-1)[untied])


def test_no_recorded_filter_is_left_uncompared() -> None:
    case = golden("sampling")
    assert len(case.facts["filter_cases"]) == FILTERS
    assert uncovered(case, *map(str, range(FILTERS)), *LATER) == []
