"""Class-conditional models equal the published ones: teacher-forced forward, loss, gradients, and greedy drawing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.checkpoints import layouts
from star_cli.generation import sampler
from star_cli.generation.cache import random_generators
from star_cli.generation.filtering import draw_tokens
from star_cli.generation.options import SamplingOptions
from star_cli.models.condition import ClassCondition
from tests.reference.golden import (
    build_class_transformer,
    build_quantizer,
    build_vqvae,
    compare_gradients,
    golden,
    schedule_of,
    uncovered,
)

CASES = ["var_adaln", "var_shared_adaln", "var_adaln_no_l2"]
GUIDANCES = {"cfg1.5": 1.5, "cfg0": 0.0}


@pytest.mark.parametrize("name", CASES)
def test_forward_with_the_labels_and_its_loss_and_gradients(name: str) -> None:
    case = golden(name)
    model = build_class_transformer(case)
    hidden: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _given, result: hidden.append(result))
    logits = model(model.prompt(ClassCondition(case["in/label"])), case["in/x"], schedule_of(case))
    case.compare("forward/labels/logits", logits, "logits")
    for index, states in enumerate(hidden):
        case.compare(f"forward/labels/hidden/{index}", states, "hidden")
    loss = F.cross_entropy(logits.flatten(0, 1), case["in/idx"].flatten())
    case.compare("forward/labels/loss", loss[None], "loss")
    loss.backward()
    compare_gradients(case, "forward/labels/grad", model, layouts.VAR)
    case.finish("forward/labels")


@pytest.mark.parametrize("name", CASES)
def test_forward_with_every_label_dropped(name: str) -> None:
    case = golden(name)
    model = build_class_transformer(case)
    nothing = torch.full_like(case["in/label"], model.config.classes)
    assert model.config.classes == case.facts["hyperparameters"]["unconditional_label"]
    with torch.no_grad():
        logits = model(model.prompt(ClassCondition(nothing)), case["in/x"], schedule_of(case))
    case.compare("forward/dropped/logits", logits, "logits")
    case.finish("forward/dropped")


@pytest.mark.parametrize("variant", GUIDANCES)
@pytest.mark.parametrize("name", CASES)
def test_greedy_drawing_of_classes(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden(name)
    model, quantizer, schedule = build_class_transformer(case), build_quantizer(case, "state_vae/"), schedule_of(case)
    raw: list[Tensor] = []
    guided: list[Tensor] = []
    model.head.register_forward_hook(lambda _module, _given, result: raw.append(result))

    def watched(logits: Tensor, *rest: Any) -> Tensor:
        guided.append(logits)
        return draw_tokens(logits, *rest)

    monkeypatch.setattr("star_cli.generation.sampler.draw_tokens", watched)
    labels = case["in/label"][:2]
    drawn = sampler.draw(
        model,
        quantizer,
        ClassCondition(labels),
        ClassCondition(torch.full_like(labels, model.config.classes)),
        schedule,
        SamplingOptions(guidance=GUIDANCES[variant], temperature=0),
        random_generators([0, 1]),
    )
    token_maps = [token_map.flatten(1) for token_map in drawn.token_maps]
    with torch.no_grad():
        latents = list(quantizer.decode_scales(token_maps, schedule))
    for scale, f_hat in enumerate(latents):
        case.compare(f"infer/{variant}/idx/{scale}", token_maps[scale], "tokens")
        case.compare(f"infer/{variant}/raw/{scale}", raw[scale], "logits")
        case.compare(f"infer/{variant}/logits/{scale}", guided[scale], "guided")
        case.compare(f"infer/{variant}/fhat/{scale}", f_hat, "latent")
    if case.recorded(f"infer/{variant}/img"):
        with torch.no_grad():
            image = build_vqvae(case, "state_vae/").decode(drawn.f_hat)
        case.compare(f"infer/{variant}/img", (image + 1) / 2, "image")
    case.finish(f"infer/{variant}")


@pytest.mark.parametrize("name", CASES)
def test_no_recorded_output_of_a_class_model_is_left_uncompared(name: str) -> None:
    assert uncovered(golden(name), "forward/labels", "forward/dropped", *(f"infer/{one}" for one in GUIDANCES)) == []
