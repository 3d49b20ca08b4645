"""Options of stage 2: what is drawn by chance repeats, teaches only while training, and reaches the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from star_cli.errors import OptionError
from star_cli.models.config import TransformerConfig
from star_cli.pipeline import StarPipeline
from star_cli.training.star import StarStage, StarStageConfig
from star_cli.training.star_batches import StarBatch
from tests.training.test_star_stage import MODEL, SCHEDULES, first_batch_at, make_source

CHANCE: dict[str, dict[str, Any]] = {
    "token noise": {"token_noise": 0.5},
    "stochastic depth": {"drop_path": 1.0},  # rate 1/2 in the last of twelve blocks
    "token drop": {"keep_tokens": 12},
}
DEEP = replace(MODEL, depth=12)


def make_stage(
    pipeline: StarPipeline, seed: int = 0, model: TransformerConfig = MODEL, steps: int | None = None, **options: Any
) -> StarStage:
    torch.manual_seed(0)
    config = StarStageConfig(scenes=9, **{"scale_weight": "token", **options})
    schedules = {32: SCHEDULES[32]}
    parts = pipeline.vqvae, pipeline.text_encoder, make_source()
    stage = StarStage(model, config, schedules, *parts, seed=seed, steps=steps)
    torch.nn.init.normal_(stage.transformer.head.weight)
    return stage


def whole_batch() -> StarBatch:
    return first_batch_at(32)


def shares_of(batch: StarBatch) -> list[StarBatch]:
    """The batch row by row."""
    return [batch.shard(row, len(batch)) for row in range(len(batch))]


@pytest.mark.parametrize("option", CHANCE)
def test_chance_follows_from_seed_and_step(tiny_pipeline: StarPipeline, option: str) -> None:
    one, again, other = (make_stage(tiny_pipeline, seed, DEEP, **CHANCE[option]) for seed in (1, 1, 2))
    batch = whole_batch()
    loss = one.loss(batch, 5)[0].item()
    torch.manual_seed(42)
    assert again.loss(batch, 5)[0].item() == loss
    assert again.loss(batch, 6)[0].item() != loss
    assert other.loss(batch, 5)[0].item() != loss


@pytest.mark.parametrize("option", [*CHANCE, "label smoothing"])
def test_nothing_of_it_touches_a_stage_in_evaluation(tiny_pipeline: StarPipeline, option: str) -> None:
    batch = whole_batch()
    stage = make_stage(tiny_pipeline, model=DEEP, **CHANCE.get(option, {"label_smoothing": 0.3}))
    plain = make_stage(tiny_pipeline, model=DEEP).loss(batch, 0)[0].item()
    assert stage.loss(batch, 0)[0].item() != plain
    assert stage.eval().loss(batch, 0)[0].item() == plain


@pytest.mark.parametrize("option", CHANCE)
def test_shares_of_a_batch_give_the_loss_of_the_whole(tiny_pipeline: StarPipeline, option: str) -> None:
    stage, batch = make_stage(tiny_pipeline, model=DEEP, **CHANCE[option]), whole_batch()
    mean = sum(stage.loss(share, 4)[0].item() for share in shares_of(batch)) / 3
    assert mean == pytest.approx(stage.loss(batch, 4)[0].item(), rel=1e-5)


def test_noise_is_seen_and_never_asked_for(tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, batch = make_stage(tiny_pipeline, token_noise=1.0), whole_batch()
    batch = replace(batch, tokens=torch.full_like(batch.tokens, 15))
    with torch.no_grad():  # a model that always says 15, and so is right about what is asked for
        stage.transformer.head.weight.zero_()
        stage.transformer.head.bias.copy_(torch.arange(16.0))
    seen: list[torch.Tensor] = []
    teacher_input = tiny_pipeline.vqvae.quantizer.teacher_input

    def watch(maps: list[torch.Tensor], *rest: Any) -> torch.Tensor:
        seen.extend(maps)
        return teacher_input(maps, *rest)

    monkeypatch.setattr(tiny_pipeline.vqvae.quantizer, "teacher_input", watch)
    _, metrics = stage.loss(batch, 0)
    assert (torch.cat(seen, 1) == 15).float().mean() < 0.3
    assert bool((batch.tokens == 15).all())
    assert [metrics[f"side {side}"].item() for side in (1, 2, 4)] == [1, 1, 1]


def test_depth_decides_how_often_a_block_is_left_out(tiny_pipeline: StarPipeline) -> None:
    assert make_stage(tiny_pipeline, drop_path=0.1).drop_path == pytest.approx(0.1 * 2 / 24)


def test_figures_of_a_step_are_for_every_scale(tiny_pipeline: StarPipeline) -> None:
    _, metrics = make_stage(tiny_pipeline, keep_tokens=12).loss(whole_batch(), 0)
    assert set(metrics) == {"per token"} | {f"{name}{side}" for name in ("side ", "loss side ") for side in (1, 2, 4)}


def test_tokens_and_operations_of_a_step_count_what_takes_part(tiny_pipeline: StarPipeline) -> None:
    plain, dropped = make_stage(tiny_pipeline), make_stage(tiny_pipeline, keep_tokens=12)
    batch = whole_batch()
    assert (plain.tokens(batch, 0), dropped.tokens(batch, 0)) == (63, 36)
    assert plain.flops(batch, 0) > dropped.flops(batch, 0) > 0


def test_in_the_last_steps_all_tokens_take_part(tiny_pipeline: StarPipeline) -> None:
    batch, plain = whole_batch(), make_stage(tiny_pipeline)
    stage = make_stage(tiny_pipeline, steps=10, keep_tokens=12, whole_share=0.3)
    assert [stage.tokens(batch, step) for step in (0, 6, 7, 9)] == [36, 36, 63, 63]
    assert stage.flops(batch, 6) < stage.flops(batch, 7) == plain.flops(batch, 7)
    assert stage.loss(batch, 6)[0].item() != plain.loss(batch, 6)[0].item()
    assert stage.loss(batch, 7)[0].item() == plain.loss(batch, 7)[0].item()


def test_a_stable_head_is_left_to_its_own_stage(tiny_pipeline: StarPipeline) -> None:
    stage = make_stage(tiny_pipeline, model=replace(MODEL, stable_head=True, stable_blocks=1, stable_from=2))
    stage.loss(whole_batch(), 0)[0].backward()
    learning = {name: parameter for name, parameter in stage.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("transformer.stable.") for name in learning)
    assert all(parameter.grad is not None for parameter in learning.values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"token_noise": 1.5}, "token_noise must be from 0 to 1, not 1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing must be from 0 to 1, not -0.1"),
        ({"whole_share": 1.5}, "whole_share must be from 0 to 1, not 1.5"),
        ({"keep_tokens": -1}, "keep_tokens must be at least 0, not -1"),
        ({"scale_weight": "area"}, "scale_weight must be one of token, side, not area"),
        ({"keep_tokens": 5}, "keep_tokens 5 leaves none of the last scale at 32 px"),
    ],
)
def test_options_that_cannot_be_are_refused(
    tiny_pipeline: StarPipeline, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionError) as refused:
        make_stage(tiny_pipeline, **options)
    assert str(refused.value) == sentence
    with pytest.raises(OptionError, match=r"drop_path 1\.0 would leave out the last block for good"):
        make_stage(tiny_pipeline, model=replace(MODEL, depth=24), drop_path=1.0)


def test_modulation_begins_quietly(tiny_pipeline: StarPipeline) -> None:
    model = replace(MODEL, modulation="text", position="learned", learned_positions=21)
    transformer = make_stage(tiny_pipeline, model=model).transformer
    gains, rest = transformer.blocks[0].modulation.weight.split([2 * 32, 4 * 32])  # type: ignore[union-attr,operator]
    assert gains.abs().max() < 1e-5
    assert rest.std() > 1e-2
    assert transformer.position_embedding.std() > 1e-2
