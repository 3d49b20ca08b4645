"""The STAR transformer equals the published one: teacher-forced forward, loss, gradients, and greedy drawing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.checkpoints import layouts
from star_cli.generation import sampler
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.transformer import StarTransformer
from tests.reference.golden import (
    Golden,
    Watched,
    build_quantizer,
    build_transformer,
    compare_gradients,
    golden,
    schedule_of,
    text_of,
    uncovered,
)

FORWARD = ["rope", "no_l2", "shared_aln", "abs_pos", "no_cross"]
INFER = ["256style", "512style", "abs_pos_no_l2", "shared_aln"]
EMPTY_PROMPT = 2  # the row of the text features that stands for no prompt
ROWS: dict[str, tuple[str, list[int]]] = {
    "b1_official": ("first_image", [0]),
    "b3_official": ("first_image", [0, 1, 2]),
    "b3_per_sample": ("per_image", [0, 1, 2]),
}
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "rope": ("no_logit_norm", {"logit_norm": False}),
    "shared_aln": ("no_lvl_in_input", {"level_in_input": False}),
}
DROPPED = {"official": "first_image", "per_sample": "per_image"}
VARIANTS: dict[str, tuple[str, int, float]] = {  # whose text is looked at, images, guidance
    "cfg4_official": ("first_image", 1, 4.0),
    "cfg0_official": ("first_image", 1, 0.0),
    "cfg4_per_sample": ("per_image", 1, 4.0),
    "b2_cfg4_official": ("first_image", 2, 4.0),
    "b2_cfg4_per_sample": ("per_image", 2, 4.0),
}
BATCHED = ["256style"]  # the cases that record batches of two
DRAWINGS = [(name, variant) for name in INFER for variant in VARIANTS if name in BATCHED or VARIANTS[variant][1] == 1]


@pytest.mark.parametrize("variant", ROWS)
@pytest.mark.parametrize("name", FORWARD)
def test_teacher_forced_forward(name: str, variant: str) -> None:
    case = golden(f"star_forward_{name}")
    heard, rows = ROWS[variant]
    model = build_transformer(case, cross_attention_rows=heard)
    hidden: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _given, result: hidden.append(result))
    logits = model(model.prompt(text_of(case, rows)), case["in/x"][rows], schedule_of(case))
    case.compare(f"{variant}/logits", logits, "logits")
    for index, states in enumerate(hidden):
        case.compare(f"{variant}/hidden/{index}", states, "hidden")
    loss = F.cross_entropy(logits.flatten(0, 1), case["in/idx"][rows].flatten())
    case.compare(f"{variant}/loss", loss[None], "loss")
    loss.backward()
    compare_gradients(case, f"{variant}/grad", model, layouts.STAR)
    case.finish(variant)


@pytest.mark.parametrize("variant", ROWS)
@pytest.mark.parametrize("name", CHANGED)
def test_forward_with_one_option_changed(name: str, variant: str) -> None:
    case = golden(f"star_forward_{name}")
    (heard, rows), (under, changes) = ROWS[variant], CHANGED[name]
    model = build_transformer(case, cross_attention_rows=heard, **changes)
    with torch.no_grad():
        logits = model(model.prompt(text_of(case, rows)), case["in/x"][rows], schedule_of(case))
    case.compare(f"{under}/{variant}/logits", logits, "logits")
    case.finish(f"{under}/{variant}")


@pytest.mark.parametrize("variant", DROPPED)
def test_forward_with_tokens_dropped(variant: str) -> None:
    case = golden("star_forward_token_drop")
    model = build_transformer(case, cross_attention_rows=DROPPED[variant])
    keep = case["in/keep"].bool()
    logits = model(model.prompt(text_of(case, [0, 1])), case["in/x"], schedule_of(case), keep)
    case.compare(f"{variant}/logits", logits, "logits")
    # with dropping the published code divides by the number of kept tokens and sums over the batch
    loss = F.cross_entropy(logits.flatten(0, 1), case["in/idx"][:, keep].flatten()) * len(logits)
    case.compare(f"{variant}/loss", loss[None], "loss")
    loss.backward()
    compare_gradients(case, f"{variant}/grad", model, layouts.STAR)
    case.finish(variant)


def draw(
    case: Golden, model: StarTransformer, quantizer: MultiScaleQuantizer, images: int, options: SamplingOptions
) -> sampler.Drawn:
    return sampler.draw(
        model,
        quantizer,
        text_of(case, list(range(images))),
        text_of(case, [EMPTY_PROMPT] * images),
        schedule_of(case),
        options,
        random_generators(list(range(images))),
    )


@pytest.mark.parametrize(("name", "variant"), DRAWINGS)
def test_greedy_drawing(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden(f"star_infer_{name}")
    heard, images, guidance = VARIANTS[variant]
    quantizer, model = build_quantizer(case, "state_vae/"), build_transformer(case, cross_attention_rows=heard)
    watched = Watched(model, monkeypatch)
    drawn = draw(case, model, quantizer, images, SamplingOptions(guidance=guidance, temperature=0))
    watched.compare(case, variant, drawn, quantizer)


@pytest.mark.parametrize("name", INFER)
def test_top_k_1_draws_the_greedy_tokens_whatever_the_seed(name: str) -> None:
    case = golden(f"star_infer_{name}")
    model = build_transformer(case, cross_attention_rows="first_image")
    drawn = draw(case, model, build_quantizer(case, "state_vae/"), 1, SamplingOptions(guidance=4.0, top_k=1))
    for scale, token_map in enumerate(drawn.token_maps):
        case.compare(f"cfg4_official/idx/{scale}", token_map.flatten(1), "tokens")
    case.finish("cfg4_official/idx")


@pytest.mark.parametrize("name", INFER)
def test_conditional_rows_draw_the_published_tokens_of_one_image(name: str) -> None:
    case = golden(f"star_infer_{name}")
    model = build_transformer(case, cross_attention_rows="conditional")
    drawn = draw(case, model, build_quantizer(case, "state_vae/"), 1, SamplingOptions(guidance=4.0, temperature=0))
    for scale, token_map in enumerate(drawn.token_maps):
        case.compare(f"cfg4_official/idx/{scale}", token_map.flatten(1), "tokens")
    case.finish("cfg4_official/idx")


@pytest.mark.parametrize("name", FORWARD)
def test_no_recorded_output_of_a_forward_is_left_uncompared(name: str) -> None:
    assert uncovered(golden(f"star_forward_{name}"), *ROWS, *CHANGED.get(name, ("none",))[:1]) == []


def test_no_recorded_output_with_tokens_dropped_is_left_uncompared() -> None:
    assert uncovered(golden("star_forward_token_drop"), *DROPPED) == []


@pytest.mark.parametrize("name", INFER)
def test_no_recorded_output_of_a_drawing_is_left_uncompared(name: str) -> None:
    assert uncovered(golden(f"star_infer_{name}"), *(variant for case, variant in DRAWINGS if case == name)) == []
