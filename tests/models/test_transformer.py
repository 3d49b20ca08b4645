from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from star_cli.errors import OptionError, ShapeError
from star_cli.models.condition import TextCondition
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from tests.models.builders import (
    CODES,
    SIDES,
    changed,
    laws,
    lively,
    logits_scale_by_scale,
    random_input,
    schedules,
    seeds,
    text,
    tiny_transformer,
    transformer_changes,
)

CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}
BY_CLASS: dict[str, Any] = {"conditioning": "class", "cross_attention": False, "classes": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    "star": {},
    "level": {"modulation": "level"},
    "no cross-attention": {"cross_attention": False},
    "learned start": {"text_start": False},
    "sincos": {"position": "sincos"},
    "no position": {"position": "none"},
    "text": {"modulation": "text", "text_start": False, "cross_attention": False},
    "text shared": {"modulation": "text_shared"},
    "var": BY_CLASS | {"modulation": "class", "position": "learned", "learned_positions": SIDES.length},
    "var shared": BY_CLASS | {"modulation": "class_shared", "position": "learned", "learned_positions": SIDES.length},
}


def prompted_rows(model: StarTransformer, rows: int, seed: int = 0) -> Any:
    if model.config.conditioning == "class":
        return model.class_prompt(torch.arange(rows))
    return model.prompt(text(rows, seed))


def teacher_forced(
    model: StarTransformer, condition: TextCondition, given_input: Tensor, schedule: Any = SIDES
) -> Tensor:
    with torch.no_grad():
        return model(model.prompt(condition), given_input, schedule)


@laws
@given(transformer_changes(), schedules, seeds)
def test_cached_equals_uncached(changes: dict[str, Any], schedule: ScaleSchedule, seed: int) -> None:
    model, given_input = tiny_transformer(seed, **changes), random_input(2, schedule, seed)
    prompted = model.prompt(text(2, seed))
    with torch.no_grad():
        whole = model(prompted, given_input, schedule)
    torch.testing.assert_close(logits_scale_by_scale(model, prompted, given_input, schedule), whole, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_cached_as_uncached_and_learns_everywhere(variant: str) -> None:
    model, given_input = tiny_transformer(**VARIANTS[variant]), random_input(2, SIDES)
    prompted = prompted_rows(model, 2)
    logits = model(prompted, given_input, SIDES)
    assert logits.shape == (2, SIDES.length, CODES)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits_scale_by_scale(model, prompted, given_input, SIDES), logits, **CLOSE)
    logits.square().mean().backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


@laws
@given(transformer_changes(), seeds)
def test_a_later_scale_changes_no_earlier_logits(changes: dict[str, Any], seed: int) -> None:
    model, given_input = tiny_transformer(seed, **changes), random_input(1, SIDES, seed)
    other = given_input.clone()
    other[:, SIDES.offsets[2] - 1 :] += 1  # the input of the last scale
    prompts = text(1, seed)
    before, after = teacher_forced(model, prompts, given_input), teacher_forced(model, prompts, other)
    assert torch.equal(before[:, : SIDES.offsets[2]], after[:, : SIDES.offsets[2]])
    assert not torch.equal(before[:, SIDES.offsets[2] :], after[:, SIDES.offsets[2] :])


def test_every_token_of_a_scale_sees_its_whole_scale_and_the_earlier_ones() -> None:
    model = tiny_transformer()
    given_input = random_input(1, SIDES).requires_grad_()
    logits = model(model.prompt(text(1)), given_input, SIDES)
    for scale in range(1, len(SIDES)):
        first, last = SIDES.offsets[scale], SIDES.offsets[scale + 1]
        (gradient,) = torch.autograd.grad(logits[0, first].square().sum(), given_input, retain_graph=True)
        assert gradient[0, : last - 1].any(dim=1).all()
        assert not gradient[0, last - 1 :].any()


@laws
@given(schedules.filter(lambda schedule: len(schedule) > 1), seeds)
def test_first_scales_of_a_longer_schedule_are_the_shorter_schedule(schedule: ScaleSchedule, seed: int) -> None:
    """One transformer serves several resolutions: what it says of a scale does not depend on those to come."""
    model, given_input, prompts = tiny_transformer(seed), random_input(2, schedule, seed), text(2, seed)
    short = schedule.prefix(len(schedule) - 1)
    whole = teacher_forced(model, prompts, given_input, schedule)
    part = teacher_forced(model, prompts, given_input[:, : short.length - short.sizes[0]], short)
    torch.testing.assert_close(part, whole[:, : short.length], **CLOSE)


@pytest.mark.parametrize("modulation", ["none", "level"])
def test_a_schedule_may_keep_levels_of_its_own(modulation: str) -> None:
    model = tiny_transformer(modulation=modulation)
    moved = tiny_transformer(modulation=modulation)
    moved.level_embedding.weight.data = model.level_embedding.weight.data.roll(3, dims=0)
    given_input, prompts = random_input(2, SIDES), text(2)
    own = ScaleSchedule(SIDES.sides, first_level=3)
    plain = teacher_forced(model, prompts, given_input, SIDES)
    torch.testing.assert_close(teacher_forced(moved, prompts, given_input, own), plain)
    assert not torch.allclose(teacher_forced(model, prompts, given_input, own), plain)


@laws
@given(transformer_changes(), seeds)
def test_each_row_is_as_if_alone(changes: dict[str, Any], seed: int) -> None:
    model, given_input, prompts = tiny_transformer(seed, **changes), random_input(3, SIDES, seed), text(3, seed)
    together = teacher_forced(model, prompts, given_input)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(teacher_forced(model, prompts.rows(one), given_input[one]), together[one], **CLOSE)


def test_in_the_released_way_the_first_text_reaches_every_row() -> None:
    model = tiny_transformer(cross_attention_rows="first_image")
    given_input, prompts = random_input(1, SIDES).expand(2, -1, -1), text(2)
    together = teacher_forced(model, prompts, given_input)
    alone = teacher_forced(model, prompts.rows(slice(1, 2)), given_input[1:])
    assert not torch.allclose(together[1:], alone, atol=1e-2)
    torch.testing.assert_close(teacher_forced(model, prompts.rows(slice(0, 1)), given_input[:1]), together[:1], **CLOSE)


def test_conditional_rows_lend_their_text_to_the_unconditional_ones() -> None:
    conditional = tiny_transformer(cross_attention_rows="conditional")
    released = tiny_transformer(cross_attention_rows="first_image")
    prompts, given_input = text(4), random_input(2, SIDES).repeat(2, 1, 1)
    with torch.no_grad():
        together = conditional(conditional.prompt(prompts, images=2), given_input, SIDES)
        for image in range(2):
            rows = torch.tensor([image, image + 2])  # one image as the released code draws it: with guidance, alone
            alone = released(released.prompt(prompts.rows(rows)), given_input[rows], SIDES)
            torch.testing.assert_close(together[rows], alone, **CLOSE)


def test_masked_text_tokens_have_no_effect() -> None:
    model, given_input = tiny_transformer(), random_input(2, SIDES)
    prompts = replace(text(2), mask=torch.tensor([[True] * 3 + [False] * 2, [True] * 2 + [False] * 3]))
    other = replace(prompts, states=torch.where(prompts.mask[..., None], prompts.states, 100.0))
    assert torch.equal(teacher_forced(model, prompts, given_input), teacher_forced(model, other, given_input))
    heard = replace(prompts, mask=torch.ones_like(prompts.mask))
    assert not torch.equal(teacher_forced(model, prompts, given_input), teacher_forced(model, heard, given_input))


def test_padding_of_the_text_has_no_effect() -> None:
    model, given_input, short = tiny_transformer(), random_input(2, SIDES), text(2)
    padded = TextCondition(
        short.pooled,
        torch.cat([short.states, torch.randn(2, 4, short.states.shape[-1])], dim=1),
        torch.cat([short.mask, torch.zeros(2, 4, dtype=torch.bool)], dim=1),
    )
    before, after = teacher_forced(model, short, given_input), teacher_forced(model, padded, given_input)
    torch.testing.assert_close(after, before, **CLOSE)


def test_pooled_text_and_states_both_matter() -> None:
    model, given_input, prompts = tiny_transformer(), random_input(1, SIDES), text(1)
    plain = teacher_forced(model, prompts, given_input)
    for other in (replace(prompts, pooled=prompts.pooled + 1), replace(prompts, states=prompts.states.flip(-1))):
        assert not torch.allclose(teacher_forced(model, other, given_input), plain, atol=1e-2)


@pytest.mark.parametrize("switch", ["text_start", "cross_attention", "modulation"])
def test_the_prompt_reaches_the_model_by_the_ways_that_are_on_and_no_other(switch: str) -> None:
    off = {"text_start": False, "cross_attention": False, "modulation": "none"}
    changes = off | {switch: "text" if switch == "modulation" else True}
    model, given_input, prompts = tiny_transformer(**changes), random_input(1, SIDES), text(1)
    plain = teacher_forced(model, prompts, given_input)
    by_pooled = teacher_forced(model, replace(prompts, pooled=prompts.pooled + 1), given_input)
    by_states = teacher_forced(model, replace(prompts, states=prompts.states.flip(-1)), given_input)
    assert torch.equal(by_pooled, plain) == (switch == "cross_attention")
    assert torch.equal(by_states, plain) == (switch != "cross_attention")


def test_without_positions_the_order_of_a_scale_does_not_matter() -> None:
    given_input, prompts = random_input(1, SIDES), text(1)
    shuffled = given_input.clone()
    shuffled[:, 4:] = given_input[:, 4:].flip(1)  # the tokens of the last scale in another order
    for position in ("none", "sincos", "rope", "learned"):
        model = tiny_transformer(position=position, learned_positions=SIDES.length)
        plain, other = (teacher_forced(model, prompts, each)[:, 5:] for each in (given_input, shuffled))
        assert torch.allclose(plain, other.flip(1), atol=1e-4) == (position == "none"), position


def test_a_row_whose_branches_count_nothing_passes_the_blocks_unchanged() -> None:
    model, given_input, prompts = tiny_transformer(cross_attention=False), random_input(2, SIDES), text(2)
    branches = torch.ones(2, 2, 2)
    with torch.no_grad():
        prompted = model.prompt(prompts)
        plain = model.hidden_states(prompted, given_input, SIDES)
        assert torch.equal(model.hidden_states(prompted, given_input, SIDES, branches=branches), plain)
        branches[:, :, 1] = 0  # for the second row
        hidden = model.hidden_states(prompted, given_input, SIDES, branches=branches)
        embedded = model.embed_codes(given_input, SIDES, 1)
    assert torch.equal(hidden[0], plain[0])
    assert torch.equal(hidden[1, 1:], embedded[1])


def test_each_branch_of_each_block_counts_by_its_own_weight() -> None:
    model, given_input, prompts = tiny_transformer(), random_input(1, SIDES), text(1)
    results = []
    with torch.no_grad():
        for block, branch in ((0, 0), (0, 1), (1, 0), (1, 1)):
            branches = torch.ones(2, 2, 1)
            branches[block, branch] = 0
            results.append(model(model.prompt(prompts), given_input, SIDES, branches=branches))
            part = model.blocks[block].feed_forward if branch else model.blocks[block].self_attention
            hook = part.register_forward_hook(lambda _module, _given, result: result * 0)
            silenced = model(model.prompt(prompts), given_input, SIDES)
            hook.remove()
            torch.testing.assert_close(results[-1], silenced)
    assert not any(torch.allclose(results[i], results[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_computes_blocks_twice_and_changes_no_gradient(variant: str) -> None:
    model, given_input = tiny_transformer(**VARIANTS[variant]), random_input(2, SIDES)
    runs = 0

    def count(*_ignored: Any) -> None:
        nonlocal runs
        runs += 1

    model.blocks[0].register_forward_pre_hook(count)
    gradients = []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        model(prompted_rows(model, 2), given_input, SIDES).square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert runs == 1 + 2
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    with torch.no_grad():
        model(prompted_rows(model, 2), given_input, SIDES)
    assert runs == 4, "nothing is computed twice where nothing is learnt"


def test_tokens_left_out_are_left_out_of_attention_too() -> None:
    model, given_input, prompts = tiny_transformer(), random_input(2, SIDES), text(2)
    keep = torch.ones(SIDES.length, dtype=torch.bool)
    keep[[7, 9, 20]] = False
    other = given_input.clone()
    other[:, ~keep[1:]] += 5
    with torch.no_grad():
        kept = model(model.prompt(prompts), given_input, SIDES, keep)
        again = model(model.prompt(prompts), other, SIDES, keep)
    assert kept.shape == (2, SIDES.length - 3, CODES)
    assert torch.equal(kept, again)
    whole = teacher_forced(model, prompts, given_input)
    torch.testing.assert_close(kept[:, :5], whole[:, :5], **CLOSE)  # earlier scales do not see what was left out


def test_a_rotary_table_made_while_drawing_serves_training() -> None:
    model = tiny_transformer()
    with torch.inference_mode():
        model(model.prompt(text(1)), random_input(1, SIDES), SIDES)
    model(model.prompt(text(1)), random_input(1, SIDES), SIDES).sum().backward()


def test_bfloat16_blocks_keep_float32_logits() -> None:
    model, given_input, prompts = tiny_transformer(), random_input(2, SIDES), text(2)
    exact = teacher_forced(model, prompts, given_input)
    model.set_compute_dtype(torch.bfloat16)
    half = teacher_forced(model, prompts, given_input)
    assert model.blocks[0].self_attention.qkv.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert model.head.weight.dtype == half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_class_speaks_through_start_map_blocks_and_head() -> None:
    model = tiny_transformer(**VARIANTS["var"])
    given_input = random_input(1, SIDES)
    with torch.no_grad():
        one, other = (model(model.class_prompt(torch.tensor([label])), given_input, SIDES) for label in (0, 5))
    assert not torch.allclose(one, other, atol=1e-2)


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_transformer()
    with pytest.raises(ShapeError, match="text features are 7 wide, this model reads 12"):
        model.prompt(TextCondition(torch.zeros(1, 7), torch.zeros(1, 2, 7), torch.ones(1, 2, dtype=torch.bool)))
    with pytest.raises(ShapeError, match="teacher input has 4 tokens, the schedule 20"):
        model(model.prompt(text(1)), random_input(1, SIDES.prefix(2)), SIDES)
    nine = ScaleSchedule((1, 1, 1, 1, 1, 1, 1, 1, 1))
    with pytest.raises(OptionError, match="this model has 8 levels, the schedule uses 9"):
        model(model.prompt(text(1)), random_input(1, nine), nine)
    learned = lively(StarTransformer(changed(position="learned", learned_positions=5)))
    with pytest.raises(OptionError, match="this model knows 5 positions, the schedule has 21"):
        learned(learned.prompt(text(1)), random_input(1, SIDES), SIDES)
    by_class = tiny_transformer(**VARIANTS["var"])
    with pytest.raises(OptionError, match="class modulation needs class labels"):
        by_class(model.prompt(text(1)), random_input(1, SIDES), SIDES)
