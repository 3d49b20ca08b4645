from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import Drawn, draw
from star_cli.models.condition import TextCondition, stack
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from tests.models.builders import (
    SIDES,
    class_changes,
    conditions,
    laws,
    placed_schedules,
    schedules,
    seeds,
    text,
    tiny_quantizer,
    tiny_transformer,
    transformer_changes,
)

OPTIONS = SamplingOptions(guidance=2.0, top_k=12, top_p=0.95)
QUANTIZER = tiny_quantizer()
EMPTY_PROMPT = 99  # the seed of its features


def drawing(
    model: StarTransformer,
    prompts: TextCondition,
    own_seeds: list[int],
    schedule: ScaleSchedule = SIDES,
    options: SamplingOptions = OPTIONS,
    unconditional: TextCondition | None = None,
    **rest: Any,
) -> Drawn:
    empty = unconditional or text(1, EMPTY_PROMPT).rows(torch.zeros(len(prompts), dtype=torch.int64))
    return draw(model, QUANTIZER, prompts, empty, schedule, options, random_generators(own_seeds), **rest)


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@settings(laws, max_examples=60)
@given(
    st.one_of(transformer_changes(), class_changes()),
    st.sampled_from(["per_image", "conditional", "first_image"]),
    placed_schedules,
    st.sampled_from([0.0, 3.0]),
    seeds,
)
def test_teacher_forcing_gives_the_logits_that_generation_saw(
    changes: dict[str, Any], rows: str, schedule: ScaleSchedule, guidance: float, seed: int
) -> None:
    model = tiny_transformer(seed, cross_attention_rows=rows, **changes)
    prompts, empty = conditions(model.config, 2, seed)
    seen: list[Tensor] = []
    hook = model.head.register_forward_hook(lambda _module, _given, result: seen.append(result))
    options = SamplingOptions(guidance=guidance, top_k=12)
    drawn = draw(model, QUANTIZER, prompts, empty, schedule, options, random_generators([seed, 1]))
    hook.remove()
    with torch.no_grad():
        teacher = QUANTIZER.teacher_input([each.flatten(1) for each in drawn.token_maps], schedule)
        both = stack(prompts, empty) if guidance else prompts
        logits = model(model.prompt(both, images=2), teacher.repeat(len(both) // 2, 1, 1), schedule)
    torch.testing.assert_close(torch.cat(seen, dim=1), logits, rtol=1e-4, atol=1e-4)


@laws
@given(schedules, seeds)
def test_f_hat_is_the_one_its_tokens_rebuild(schedule: ScaleSchedule, seed: int) -> None:
    drawn = drawing(tiny_transformer(seed), text(2, seed), [0, 1], schedule)
    assert [each.shape for each in drawn.token_maps] == [(2, side, side) for side in schedule.sides]
    with torch.no_grad():
        *_, f_hat = QUANTIZER.decode_scales([each.flatten(1) for each in drawn.token_maps], schedule)
    assert drawn.f_hat.dtype == torch.float32
    assert torch.equal(drawn.f_hat, f_hat)


@laws
@given(st.sampled_from(["per_image", "conditional"]), st.sampled_from([0.0, 2.0]), seeds)
def test_batch_of_four_equals_four_of_one(rows: str, guidance: float, seed: int) -> None:
    model, prompts = tiny_transformer(seed, cross_attention_rows=rows), text(4, seed)
    options, own = SamplingOptions(guidance=guidance, top_k=12, top_p=0.95), [5, 6, 7, 8]
    together = drawing(model, prompts, own, options=options)
    for image in range(4):
        alone = drawing(model, prompts.rows(slice(image, image + 1)), own[image : image + 1], options=options)
        assert same([each[image] for each in together.token_maps], [each[0] for each in alone.token_maps])


def test_the_released_way_lets_a_neighbour_change_an_image() -> None:
    model, prompts = tiny_transformer(cross_attention_rows="first_image"), text(2)
    together = drawing(model, prompts, [5, 6])
    first, second = (drawing(model, prompts.rows(slice(i, i + 1)), [5 + i]) for i in range(2))
    assert same([each[0] for each in together.token_maps], [each[0] for each in first.token_maps])
    assert not same([each[1] for each in together.token_maps], [each[0] for each in second.token_maps])


@pytest.mark.parametrize("rows", ["per_image", "first_image"])
def test_conditional_rows_equal_the_released_way_for_one_image_alone(rows: str) -> None:
    prompts = text(1)
    conditional = drawing(tiny_transformer(cross_attention_rows="conditional"), prompts, [5])
    other = drawing(tiny_transformer(cross_attention_rows=rows), prompts, [5])
    assert same(conditional.token_maps, other.token_maps) == (rows == "first_image")


def test_seed_and_prompt_and_nothing_else_decide_an_image() -> None:
    model, prompts = tiny_transformer(), text(2)
    first = drawing(model, prompts, [1, 2])
    torch.manual_seed(123)
    assert same(first.token_maps, drawing(model, prompts, [1, 2]).token_maps)
    assert not same(first.token_maps, drawing(model, prompts, [1, 3]).token_maps)
    assert not same(first.token_maps, drawing(model, text(2, seed=8), [1, 2]).token_maps)


def test_equal_seeds_and_prompts_give_equal_images_within_a_batch() -> None:
    prompts = text(1).rows(torch.tensor([0, 0, 0]))
    drawn = drawing(tiny_transformer(), prompts, [4, 4, 5])
    assert all(torch.equal(each[0], each[1]) for each in drawn.token_maps)
    assert not all(torch.equal(each[0], each[2]) for each in drawn.token_maps)


def test_guidance_0_never_looks_at_the_unconditional_prompt() -> None:
    model, prompts, options = tiny_transformer(), text(2), SamplingOptions(guidance=0, top_k=12)
    nothing = TextCondition(prompts.pooled * torch.nan, prompts.states * torch.nan, prompts.mask)
    plain = drawing(model, prompts, [1, 2], options=options)
    assert same(plain.token_maps, drawing(model, prompts, [1, 2], options=options, unconditional=nothing).token_maps)
    faint = SamplingOptions(guidance=1e-7, top_k=12)
    assert same(plain.token_maps, drawing(model, prompts, [1, 2], options=faint).token_maps)


def test_guidance_and_the_negative_prompt_change_the_image() -> None:
    model, prompts = tiny_transformer(), text(1)
    guided = drawing(model, prompts, [1])
    assert not same(guided.token_maps, drawing(model, prompts, [1], unconditional=text(1, 55)).token_maps)
    unguided = drawing(model, prompts, [1], options=SamplingOptions(guidance=0, top_k=12, top_p=0.95))
    assert not same(guided.token_maps, unguided.token_maps)


def test_temperature_0_and_top_k_1_are_greedy_whatever_the_seed() -> None:
    model, prompts = tiny_transformer(), text(2)
    greedy = drawing(model, prompts, [1, 2], options=SamplingOptions(temperature=0))
    for options in (SamplingOptions(temperature=0), SamplingOptions(top_k=1)):
        assert same(greedy.token_maps, drawing(model, prompts, [3, 4], options=options).token_maps)


def test_one_transformer_draws_several_resolutions() -> None:
    model, prompts = tiny_transformer(), text(1)
    before = drawing(model, prompts, [1])
    large = drawing(model, prompts, [1], ScaleSchedule((1, 2, 4, 7), first_level=3))
    assert large.f_hat.shape[-2:] == (7, 7)
    assert same(before.token_maps, drawing(model, prompts, [1]).token_maps)


def test_progress_is_told_after_each_scale() -> None:
    told: list[tuple[int, int]] = []
    drawing(tiny_transformer(), text(1), [1], on_scale=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
