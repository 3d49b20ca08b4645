"""Low-rank adapters: they alone learn, every layer hears them, and merged weights say the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from star_cli.errors import OptionError
from star_cli.models.transformer import StarTransformer
from star_cli.training.checkpoint import list_checkpoints
from star_cli.training.loop import TrainingRun, train_stage
from star_cli.training.lora import add_adapters, merge_adapters
from tests.training.tiny_stages import LOOP, MODEL, SCHEDULE, Line, Painter, Pictures, equal

pytest.importorskip("peft")
LORA = replace(LOOP, lora_rank=2, lora_alpha=4.0)


def logits(stage: Painter) -> torch.Tensor:
    batch = Pictures().batch(0)
    with torch.no_grad():
        return stage.transformer(stage.transformer.prompt(batch.condition), batch.teacher_input, SCHEDULE)


def with_lively_adapters() -> Painter:
    stage = Painter()
    add_adapters(stage, rank=2, alpha=4.0)
    for name, parameter in stage.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return stage


def test_fresh_adapters_change_nothing() -> None:
    stage = Painter()
    before = logits(stage)
    add_adapters(stage, rank=2, alpha=4.0)
    assert torch.allclose(logits(stage), before, atol=1e-6)


def test_merged_weights_say_what_the_adapters_said() -> None:
    stage = with_lively_adapters()
    adapted = logits(stage)
    assert (adapted - logits(Painter())).abs().max() > 1e-2
    merge_adapters(stage)
    assert (logits(stage) - adapted).abs().max() < 1e-5
    assert set(stage.state_dict()) == set(Painter().state_dict())


def test_every_adapter_gets_a_gradient_and_nothing_else_does() -> None:
    stage = with_lively_adapters()
    stage.loss(Pictures().batch(0), 0)[0].backward()
    heard = {name for name, parameter in stage.named_parameters() if parameter.grad is not None}
    layers = sum(isinstance(module, nn.Linear) for module in Painter().modules())
    assert len(heard) == 2 * layers
    assert all("lora_" in name for name in heard)


def test_finetuning_lowers_the_loss_and_leaves_plain_layers(tmp_path: Path) -> None:
    stage, before = Painter(), Painter()
    train_stage(stage, replace(LORA, steps=10), tmp_path)
    batch = Pictures().batch(0)
    assert stage.loss(batch, 0)[0] < before.loss(batch, 0)[0]
    assert set(stage.state_dict()) == set(before.state_dict())


def test_checkpoints_hold_the_adapters_alone_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole, resumed = Painter(), Painter()
    train_stage(whole, replace(LORA, keep_last=9), tmp_path)
    path = next(path for path in list_checkpoints(tmp_path) if "3.pt" in path.name)
    state = torch.load(path, weights_only=True)
    assert all("lora_" in key for key in (*state["stage"], *state["average"]))
    train_stage(resumed, LORA, tmp_path / "resumed", resume=path)
    assert equal(whole, resumed)


def test_a_stage_without_layers_to_adapt_says_so(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="stage line takes no adapters"):
        TrainingRun(Line(), LORA, tmp_path)


def test_a_head_that_does_not_learn_takes_no_adapters() -> None:
    """Its layers are called as others are: "stable.head" ends as "head" does."""
    stage = Painter()
    stage.transformer = StarTransformer(replace(MODEL, stable_head=True, stable_blocks=1, stable_from=2))
    assert stage.transformer.stable is not None
    stage.transformer.stable.requires_grad_(False)
    add_adapters(stage, rank=2, alpha=4.0)
    learning = {name for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert "transformer.head.lora_A.default.weight" in learning
    assert not any(".stable." in name for name in learning)
    assert not any("lora_" in name for name, _ in stage.transformer.stable.named_parameters())
