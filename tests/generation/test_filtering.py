from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from star_cli.generation.filtering import draw_tokens, filter_logits
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from tests.models.builders import laws, seeds

distinct_logits = st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True).map(
    lambda values: [value / 8 for value in values]
)
any_logits = st.lists(st.integers(-4, 4), min_size=1, max_size=12).map(
    lambda values: [float(value) for value in values]
)
top_ks = st.integers(0, 14)
top_ps = st.floats(0.01, 1.0)
ALL = SamplingOptions(top_k=10**6, top_p=1.0)


def allowed(logits: list[float], top_k: int, top_p: float) -> tuple[set[int], float]:
    """Which codes may be drawn, in plain float64; and how far the decision was from a tie."""
    kth = sorted(logits, reverse=True)[top_k - 1] if 0 < top_k < len(logits) else -math.inf
    kept = {code for code, logit in enumerate(logits) if logit >= kth}
    if not top_p:
        return kept, 1.0
    total = sum(math.exp(logits[code]) for code in kept)
    gathered, margin = 0.0, 1.0
    for code in sorted(kept, key=lambda code: logits[code])[:-1]:
        gathered += math.exp(logits[code]) / total
        margin = min(margin, abs(gathered - (1 - top_p)))
        if gathered <= 1 - top_p:
            kept.remove(code)
    return kept, margin


def kept_of(logits: list[float], top_k: int, top_p: float) -> set[int]:
    return set(filter_logits(torch.tensor(logits), top_k, top_p).isfinite().nonzero()[:, 0].tolist())


@laws
@given(distinct_logits, top_ks, top_ps | st.just(0.0))
def test_filters_keep_what_plain_arithmetic_keeps(logits: list[float], top_k: int, top_p: float) -> None:
    expected, margin = allowed(logits, top_k, top_p)
    assume(margin > 1e-5)  # float32 may decide a tie either way
    assert kept_of(logits, top_k, top_p) == expected


@laws
@given(any_logits, st.integers(1, 14))
def test_top_k_keeps_all_that_tie_with_the_last(logits: list[float], top_k: int) -> None:
    assert kept_of(logits, top_k, 0.0) == allowed(logits, top_k, 0.0)[0]


@laws
@given(any_logits, top_ks, top_ps)
def test_what_is_kept_is_likeliest_enough_and_unchanged(logits: list[float], top_k: int, top_p: float) -> None:
    given_logits = torch.tensor(logits)
    before = given_logits.clone()
    filtered = filter_logits(given_logits, top_k, top_p)
    assert torch.equal(given_logits, before)
    kept = filtered.isfinite()
    assert torch.equal(filtered[kept], given_logits[kept])
    assert filtered.max() == given_logits.max()
    among = filter_logits(given_logits, top_k, 0.0).softmax(-1)
    assert among[kept].sum() >= top_p - 1e-5


def test_0_and_the_whole_codebook_keep_everything() -> None:
    logits = torch.randn(2, 3, 8)
    for top_k, top_p in ((0, 0.0), (8, 0.0), (100, 1.0)):
        assert torch.equal(filter_logits(logits, top_k, top_p), logits)


def test_rows_are_filtered_each_on_its_own() -> None:
    logits = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    together = filter_logits(logits, 5, 0.7)
    for image in range(3):
        for token in range(4):
            assert torch.equal(filter_logits(logits[image, token], 5, 0.7), together[image, token])


@laws
@given(seeds, st.integers(1, 6), st.floats(0.1, 1.0), st.floats(0.2, 3.0))
def test_only_allowed_codes_are_drawn(seed: int, top_k: int, top_p: float, temperature: float) -> None:
    logits = torch.randn(2, 50, 12, generator=torch.Generator().manual_seed(seed))
    options = SamplingOptions(top_k=top_k, top_p=top_p, temperature=temperature)
    tokens = draw_tokens(logits, options, random_generators([seed, 1]))
    assert tokens.shape == (2, 50)
    assert tokens.dtype == torch.int64
    kept = filter_logits(logits / temperature, top_k, top_p).isfinite()
    assert kept.gather(-1, tokens[..., None]).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    logits, draws = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0]), 40_000
    options = SamplingOptions(top_k=10, top_p=1.0, temperature=temperature)
    tokens = draw_tokens(logits.expand(1, draws, 5), options, random_generators([3]))
    weights = [math.exp(logit / temperature) for logit in logits.tolist()]
    for code, count in enumerate(tokens[0].bincount(minlength=5).tolist()):
        expected = draws * weights[code] / sum(weights)
        assert abs(count - expected) < 4.5 * math.sqrt(expected) + 1


@laws
@given(seeds)
def test_an_image_draws_from_its_own_generator_alone(seed: int) -> None:
    logits = torch.randn(4, 30, 10, generator=torch.Generator().manual_seed(seed))
    own = [seed, 7, seed + 1, 7]
    together = draw_tokens(logits, ALL, random_generators(own))
    for image in range(4):
        alone = draw_tokens(logits[image : image + 1], ALL, random_generators(own[image : image + 1]))
        assert torch.equal(alone[0], together[image])


def test_draws_do_not_touch_the_global_generator() -> None:
    state = torch.get_rng_state()
    draw_tokens(torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(0)), ALL, random_generators([0]))
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_0_takes_the_likeliest_code_and_draws_nothing() -> None:
    logits = torch.randn(2, 30, 10, generator=torch.Generator().manual_seed(0))
    generators = random_generators([0, 1])
    states = [generator.get_state() for generator in generators]
    tokens = draw_tokens(logits, SamplingOptions(temperature=0), generators)
    assert torch.equal(tokens, logits.argmax(-1))
    assert all(torch.equal(one.get_state(), state) for one, state in zip(generators, states, strict=True))


def test_low_temperature_comes_close_to_greedy() -> None:
    logits = torch.tensor([[[0.0, 1.0, 0.5]]]).expand(1, 200, 3)
    assert torch.equal(
        draw_tokens(logits, SamplingOptions(top_p=1.0, temperature=1e-3), random_generators([0])),
        torch.ones(1, 200, dtype=torch.int64),
    )


def test_each_image_needs_its_generator() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_tokens(torch.zeros(2, 1, 3), ALL, random_generators([0]))
