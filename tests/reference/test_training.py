"""A training step equals the published one: teacher-forcing input, loss and gradients, with tokens left out or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from star_cli.checkpoints import layouts
from star_cli.training.noise import Chance
from star_cli.training.star import StarStage, StarStageConfig
from star_cli.training.star_batches import StarBatch
from tests.reference.golden import (
    Golden,
    build_quantizer,
    build_transformer,
    compare_gradients,
    golden,
    schedule_of,
    text_of,
)
from tests.reference.test_star import FORWARD

RESOLUTION = 64  # of no meaning: the cases have tokens, no pictures


def published_stage(case: Golden, **options: Any) -> tuple[StarStage, StarBatch]:
    """The trainer's own stage around the recorded weights, and the recorded batch."""
    schedule, model = schedule_of(case), build_transformer(case, cross_attention_rows="per_image")
    config = StarStageConfig(scenes=1, scale_weight="token", **options)
    vqvae: Any = SimpleNamespace(quantizer=build_quantizer(case, "state_vae/"))
    text: Any = None  # the batch has the recorded features
    source: Any = SimpleNamespace(known_tokens=list, reads_pictures=False)
    stage = StarStage(model.config, config, {RESOLUTION: schedule}, vqvae, text, source)
    stage.transformer.load_state_dict(model.state_dict())
    rows = list(range(len(case["in/idx"])))
    return stage, StarBatch(RESOLUTION, len(schedule), case["in/idx"], [""] * len(rows), features=text_of(case, rows))


@pytest.mark.parametrize("name", [*FORWARD, "token_drop"])
def test_teacher_forcing_input_is_the_published_one(name: str) -> None:
    case = golden(f"star_forward_{name}")
    schedule, quantizer = schedule_of(case), build_quantizer(case, "state_vae/")
    maps = [case["in/idx"][:, schedule.slice(scale)] for scale in range(len(schedule))]
    with torch.no_grad():
        torch.testing.assert_close(quantizer.teacher_input(maps, schedule), case["in/x"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FORWARD)
def test_loss_and_gradients_of_a_step(name: str) -> None:
    case = golden(f"star_forward_{name}")
    stage, batch = published_stage(case)
    loss, metrics = stage.loss(batch, 0)
    case.compare("b3_per_sample/loss", loss[None], "loss")
    assert metrics["per token"].item() == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    compare_gradients(case, "b3_per_sample/grad", stage.transformer, layouts.STAR)
    case.finish("b3_per_sample/loss", "b3_per_sample/grad")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_of_a_step_that_leaves_tokens_out(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = golden("star_forward_token_drop")
    keep = case["in/keep"].bool()
    monkeypatch.setattr(Chance, "kept_tokens", lambda *_ignored: keep)
    stage, batch = published_stage(case, keep_tokens=int(keep.sum()))
    stage.transformer.set_checkpointing(checkpointing)
    loss, _ = stage.loss(batch, 0)
    loss = loss * len(batch.tokens)  # with dropping the published code sums over the batch
    case.compare("per_sample/loss", loss[None], "loss")
    loss.backward()
    compare_gradients(case, "per_sample/grad", stage.transformer, layouts.STAR)
    case.finish("per_sample/loss", "per_sample/grad")
