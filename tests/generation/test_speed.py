"""The levels of speed: what each must not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from star_cli.errors import OptionError
from star_cli.generation import filtering
from star_cli.generation.drawn import Drawn
from star_cli.generation.filtering import filter_by_sort, filter_logits
from star_cli.generation.late import KEPT_SHARE, first_late_scale, pivotal_tokens
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.models.condition import Condition
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from tests.models.builders import (
    class_changes,
    conditions,
    laws,
    placed_schedules,
    seeds,
    tiny_quantizer,
    tiny_transformer,
    transformer_changes,
)

QUANTIZER = tiny_quantizer()
LONG = ScaleSchedule((1, 2, 2, 3, 4, 5))  # its last two scales are late
OPTIONS = SamplingOptions(guidance=2.0, top_k=9, top_p=0.9, stable=False)


def drawn_at(
    speed: str,
    model: StarTransformer,
    told: tuple[Condition, Condition],
    own_seeds: list[int],
    schedule: ScaleSchedule = LONG,
    options: SamplingOptions = OPTIONS,
) -> Drawn:
    chosen = SamplingOptions(**(options.to_dict() | {"speed": speed}))
    return draw(model, QUANTIZER, *told, schedule, chosen, random_generators(own_seeds))


def same(first: Drawn, second: Drawn) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first.token_maps, second.token_maps, strict=True))


@settings(laws, max_examples=40)
@given(
    st.one_of(transformer_changes(), class_changes()),
    st.sampled_from(["per_image", "conditional", "first_image"]),
    placed_schedules,
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([1, 3]),
    seeds,
)
def test_exact_draws_the_tokens_of_the_reference(
    changes: dict[str, Any], rows: str, schedule: ScaleSchedule, guidance: float, images: int, seed: int
) -> None:
    model = tiny_transformer(seed, cross_attention_rows=rows, **changes)
    told, options = conditions(model.config, images, seed), replace(OPTIONS, guidance=guidance)
    own = list(range(seed, seed + images))
    exact, reference = (drawn_at(speed, model, told, own, schedule, options) for speed in ("exact", "reference"))
    assert same(exact, reference)
    assert torch.equal(exact.f_hat, reference.f_hat)


@pytest.mark.parametrize("version", ["1024", "new"])
def test_exact_draws_the_tokens_of_the_reference_in_stable_sampling(version: str) -> None:
    model = tiny_transformer(stable_head=True, stable_blocks=1, stable_from=4, stable_version=version)
    told, options = conditions(model.config, 2), replace(OPTIONS, stable=True)
    assert same(*(drawn_at(speed, model, told, [1, 2], options=options) for speed in ("exact", "reference")))


@laws
@given(st.one_of(transformer_changes(), class_changes()), st.sampled_from([1, 3]), seeds)
def test_without_guidance_fast_is_exact(changes: dict[str, Any], images: int, seed: int) -> None:
    model = tiny_transformer(seed, **changes)
    told, own = conditions(model.config, images, seed), list(range(images))
    unguided = replace(OPTIONS, guidance=0.0)
    assert same(*(drawn_at(speed, model, told, own, options=unguided) for speed in ("exact", "fast")))


def test_fast_leaves_out_guidance_of_the_late_scales_alone() -> None:
    model = tiny_transformer()
    told = conditions(model.config, 2)
    exact, fast = (drawn_at(speed, model, told, [1, 2]) for speed in ("exact", "fast"))
    agree = [torch.equal(one, other) for one, other in zip(exact.token_maps, fast.token_maps, strict=True)]
    assert agree[:4] == [True] * 4
    assert not all(agree[4:])


@pytest.mark.parametrize("rows", ["per_image", "conditional", "first_image"])
def test_the_late_scales_of_fast_see_what_their_conditional_rows_saw(rows: str) -> None:
    """Guidance of a strength that is lost in rounding leaves the conditional rows' own tokens."""
    model = tiny_transformer(cross_attention_rows=rows)
    told, faint = conditions(model.config, 2), replace(OPTIONS, guidance=1e-9)
    assert same(*(drawn_at(speed, model, told, [1, 2], options=faint) for speed in ("exact", "fast")))


@settings(laws, max_examples=12)
@given(
    st.one_of(transformer_changes(), class_changes()),
    st.sampled_from(["fast", "turbo"]),
    st.sampled_from([0.0, 3.0]),
    seeds,
)
def test_batch_neighbours_change_nothing(changes: dict[str, Any], speed: str, guidance: float, seed: int) -> None:
    model = tiny_transformer(seed, **changes)
    told, own = conditions(model.config, 3, seed), [5, 6, 7]
    options = replace(OPTIONS, guidance=guidance)
    together = drawn_at(speed, model, told, own, options=options)
    assert same(together, drawn_at(speed, model, told, own, options=options))
    for image in range(3):
        row = slice(image, image + 1)
        alone = drawn_at(speed, model, (told[0].rows(row), told[1].rows(row)), own[row], options=options)
        assert all(torch.equal(a[image], b[0]) for a, b in zip(together.token_maps, alone.token_maps, strict=True))


def test_turbo_runs_the_blocks_for_half_of_the_late_tokens() -> None:
    model = tiny_transformer()
    seen: list[tuple[int, int]] = []
    hook = model.blocks[0].register_forward_hook(lambda _module, given, _result: seen.append(given[0].shape[:2]))
    drawn_at("turbo", model, conditions(model.config, 2), [1, 2])
    hook.remove()
    assert seen == [(4, 1), (4, 4), (4, 4), (4, 9), (2, 8), (2, 13)]


def test_stable_sampling_refines_what_turbo_left() -> None:
    model = tiny_transformer(stable_head=True, stable_blocks=1, stable_from=4)
    told, options = conditions(model.config, 2), replace(OPTIONS, stable=True)
    assert same(*(drawn_at("turbo", model, told, [1, 2], options=options) for _ in range(2)))


def test_pivotal_tokens_are_those_that_differ_from_the_rest() -> None:
    codes = torch.zeros(2, 64, 3)
    codes[0, 40:60] = 1.0
    codes[1, 7], codes[1, 9] = 5.0, -5.0
    kept = pivotal_tokens(codes)
    assert kept.shape == (2, 64 * KEPT_SHARE)
    assert set(range(40, 60)) <= set(kept[0].tolist())
    assert {7, 9} <= set(kept[1].tolist())
    assert torch.equal(kept, kept.sort(1).values)


def test_pivotal_tokens_do_not_hang_on_the_last_bits() -> None:
    codes = torch.zeros(1, 64, 3)
    codes[0, 9] = 1.0
    noise = 1e-6 * torch.randn(5, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pivotal_tokens(codes + noise), pivotal_tokens(codes).expand(5, -1))


@pytest.mark.parametrize(
    ("sides", "late"),
    [((1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 8), ((1, 2, 4, 8, 16), 4), ((3,), 1), (tuple(range(1, 15)), 11)],
)
def test_late_scales_are_the_last_fifth_of_the_schedule(sides: tuple[int, ...], late: int) -> None:
    schedule = ScaleSchedule(sides)
    assert first_late_scale(SamplingOptions(speed="fast"), schedule) == late
    assert first_late_scale(SamplingOptions(), schedule) == len(sides)


@pytest.mark.parametrize("speed", ["reference", "fast", "turbo"])
def test_the_published_way_has_one_speed(speed: str) -> None:
    with pytest.raises(OptionError, match=f"--compat official .* --speed {speed}"):
        SamplingOptions(compat="official", speed=speed)  # type: ignore[arg-type]


# -- the filter --------------------------------------------------------------------------------------------------------

grids = st.integers(0, 3).flatmap(
    lambda spread: st.lists(st.lists(st.integers(-spread, spread), min_size=12, max_size=12), min_size=1, max_size=3)
)
edges = st.sampled_from([1e-9, 0.25, 0.5, 0.75, 0.999999, 1.0])


@settings(laws, max_examples=200)
@given(grids, st.integers(0, 14), edges | st.floats(0, 1), st.sampled_from([1.0, 1e-3, 40.0]))
def test_the_quick_filter_keeps_what_the_sort_keeps_ties_included(
    rows: list[list[int]], top_k: int, top_p: float, gain: float
) -> None:
    logits = gain * torch.tensor(rows, dtype=torch.float32)
    assert torch.equal(filter_logits(logits, top_k, top_p), filter_by_sort(logits, top_k, top_p))


def test_rows_that_tie_are_sorted_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    logits[0, 2], logits[0, 4, :12] = 0.5, 3.0
    expected, sorted_rows = filter_by_sort(logits, 8, 0.9), []

    def watched(rows: Tensor, top_k: int, top_p: float) -> Tensor:
        sorted_rows.append(len(rows))
        return filter_by_sort(rows, top_k, top_p)

    monkeypatch.setattr(filtering, "filter_by_sort", watched)
    assert torch.equal(filter_logits(logits, 8, 0.9), expected)
    assert sorted_rows == [2]


@laws
@given(seeds, st.integers(1, 70), st.floats(0.01, 1.0), st.booleans())
def test_the_quick_filter_keeps_what_the_sort_keeps(seed: int, top_k: int, top_p: float, masked: bool) -> None:
    logits = 3 * torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(seed))
    if masked:
        logits[..., ::3] = -torch.inf
    assert torch.equal(filter_logits(logits, top_k, top_p), filter_by_sort(logits, top_k, top_p))


def test_only_the_likeliest_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Tensor:
        raise AssertionError("the whole row was sorted")

    logits = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(Tensor, "sort", refuse)
    assert filter_logits(logits, 8, 0.9).isfinite().sum(-1).max() <= 8
