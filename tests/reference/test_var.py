"""Class-conditional models equal the published ones: teacher-forced forward, loss, gradients, and greedy drawing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.checkpoints import layouts
from star_cli.generation import sampler
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.models.condition import ClassCondition
from tests.reference.golden import (
    Watched,
    build_class_transformer,
    build_quantizer,
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
    watched = Watched(model, monkeypatch)
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
    watched.compare(case, f"infer/{variant}", drawn, quantizer)


@pytest.mark.parametrize("name", CASES)
def test_no_recorded_output_of_a_class_model_is_left_uncompared(name: str) -> None:
    assert uncovered(golden(name), "forward/labels", "forward/dropped", *(f"infer/{one}" for one in GUIDANCES)) == []
