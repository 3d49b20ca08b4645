"""Top-k and top-p filters and the Gumbel relaxation equal the published ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from star_cli.generation.filtering import draw_tokens, filter_logits
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.relaxation import relax
from tests.reference.golden import Golden, golden, uncovered

FILTERS = 13
TOP_K_1 = [1, 12]
TIED_ROWS = [(0, 0), (1, 2)]
GUMBEL = 5


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


def compare_relaxed(case: Golden, under: str, logits: torch.Tensor, progress: float) -> None:
    soft = relax(logits, case[f"in/{under}/noise"], progress)
    case.compare(f"{under}/soft", soft, "relaxed")
    case.compare(f"{under}/h", soft @ case["in/codebook"], "latent")
    case.finish(under)


@pytest.mark.parametrize("index", range(GUMBEL))
def test_relaxation_with_the_recorded_noise(index: int) -> None:
    case = golden("sampling")
    values = case.facts["gumbel_cases"][index]
    assert max(0.27 * (1 - 0.95 * values["ratio"]), 0.005) == pytest.approx(values["tau"])
    compare_relaxed(case, f"gumbel/{index}", case["in/gumbel_logits"], values["ratio"])


def test_relaxation_of_filtered_logits() -> None:
    case = golden("sampling")
    compare_relaxed(case, "gumbel_filtered", filter_logits(case["in/gumbel_logits"], 12, 0.9), 0.5)


def test_no_recorded_filter_or_relaxation_is_left_uncompared() -> None:
    case = golden("sampling")
    assert len(case.facts["filter_cases"]) == FILTERS
    assert len(case.facts["gumbel_cases"]) == GUMBEL
    relaxations = [*(f"gumbel/{index}" for index in range(GUMBEL)), "gumbel_filtered"]
    assert uncovered(case, *map(str, range(FILTERS)), *relaxations) == []
