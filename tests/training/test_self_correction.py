"""The model's own draws among what it sees: later tokens make up for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from star_cli.data.source import ShapeScenes
from star_cli.errors import OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.models.schedule import ScaleSchedule
from star_cli.pipeline import StarPipeline
from star_cli.training.noise import Chance
from star_cli.training.self_correction import draw_along, first_own_scales, surrounding_autocast
from star_cli.training.star import StarStage, StarStageConfig
from star_cli.training.star_batches import Portion, StarBatch, StarSource
from star_cli.training.star_sources import PixelBatches
from tests.training.test_star_stage import MODEL, SCHEDULES, make_source

CHANCE = Chance("star", 0, 3)
WHOLE, FIRST = (
    Portion(resolution=32, batch_size=4, share=1.0),
    Portion(resolution=32, scales=2, batch_size=4, share=1.0),
)


def make_stage(
    pipeline: StarPipeline, portion: Portion = WHOLE, source: StarSource | None = None, **options: Any
) -> StarStage:
    schedules = {32: SCHEDULES[32]}
    source = source or PixelBatches(ShapeScenes(9), schedules, [portion], 0.0, 0)
    torch.manual_seed(0)
    config = StarStageConfig(scenes=0, **options)
    assert pipeline.text_encoder is not None
    stage = StarStage(MODEL, config, schedules, pipeline.vqvae, pipeline.text_encoder, source)
    torch.nn.init.normal_(stage.transformer.head.weight)
    return stage


def split(tokens: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
    return [tokens[:, schedule.slice(scale)] for scale in range(len(schedule))]


def along(pipeline: StarPipeline, stage: StarStage, first_own: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    """Tokens asked for and input of four scenes, the model drawing them from some scale on."""
    batch, schedule = stage.source.batch(0), SCHEDULES[32]
    sampling = SamplingOptions(**options)
    with torch.no_grad():
        return draw_along(
            *(stage.transformer, pipeline.vqvae.quantizer, stage.reader.condition(batch), stage.reader.latent(batch)),
            *(schedule, len(schedule), torch.tensor(first_own), sampling, random_generators(range(4))),
            surrounding_autocast(torch.device("cpu")),
        )


def test_without_a_draw_nothing_is_to_be_put_right(tiny_pipeline: StarPipeline) -> None:
    schedule, stage = SCHEDULES[32], make_stage(tiny_pipeline)
    tokens = stage.reader.tokens(stage.source.batch(0))
    asked, seen = along(tiny_pipeline, stage, [len(schedule) - 1] * 4)
    assert torch.equal(asked, tokens)
    assert torch.equal(seen, tiny_pipeline.vqvae.quantizer.teacher_input(split(tokens, schedule), schedule))


@pytest.mark.parametrize("smooth", [0, 2])
def test_what_is_drawn_is_what_a_picture_would_have(tiny_pipeline: StarPipeline, smooth: int) -> None:
    """From the first scale on, the model sees the scales of the picture that it draws from the same randomness."""
    stage, quantizer = make_stage(tiny_pipeline), tiny_pipeline.vqvae.quantizer
    options = SamplingOptions(guidance=0.0, temperature=0.7, smooth=smooth)
    schedule, condition = SCHEDULES[32], stage.reader.condition(stage.source.batch(0))
    drawn = draw(stage.transformer, quantizer, condition, condition, schedule, options, random_generators(range(4)))
    maps = [tokens.flatten(1) for tokens in drawn.token_maps]
    # guidance would change it
    asked, seen = along(tiny_pipeline, stage, [0] * 4, guidance=4.0, temperature=0.7, smooth=smooth)
    if smooth == 0:
        torch.testing.assert_close(seen, quantizer.teacher_input(maps, schedule))
    else:  # tokens do not tell what smooth scales added: the scales before them do
        plain = schedule.offsets[-2] - schedule.offsets[1]
        torch.testing.assert_close(seen[:, :plain], quantizer.teacher_input(maps[:-1], schedule))
        assert not torch.allclose(seen[:, plain:], quantizer.teacher_input(maps, schedule)[:, plain:])
    assert not torch.equal(asked, stage.reader.tokens(stage.source.batch(0)))


def test_later_tokens_make_up_for_mistakes(tiny_pipeline: StarPipeline) -> None:
    schedule, quantizer = SCHEDULES[32], tiny_pipeline.vqvae.quantizer
    stage = make_stage(tiny_pipeline)
    latent = stage.reader.latent(stage.source.batch(0))
    asked, seen = along(tiny_pipeline, stage, [0, 1, 1, 0])
    at = 0
    for scale, side in enumerate(schedule.sides[1:], start=1):
        f_hat = seen[:, at : at + side * side].transpose(1, 2).unflatten(2, (side, side))
        at += side * side
        if side == schedule.last_side:  # seen whole
            left = quantizer.nearest(quantizer.next_input(latent - f_hat, side))
            assert torch.equal(left, asked[:, schedule.slice(scale)])
    true = stage.reader.tokens(stage.source.batch(0))
    assert torch.equal(asked[:, 0], true[:, 0])  # nothing was drawn before it
    assert torch.equal(asked[1:3, 1:5], true[1:3, 1:5])
    assert not torch.equal(asked[:, 5:], true[:, 5:])


def test_an_image_draws_the_same_in_any_batch(tiny_pipeline: StarPipeline) -> None:
    stage = make_stage(tiny_pipeline)
    together, other = along(tiny_pipeline, stage, [0, 0, 1, 2]), along(tiny_pipeline, stage, [2, 0, 0, 1])
    assert torch.equal(together[0][1], other[0][1])
    assert not torch.equal(together[1][0], other[1][0])


def test_every_scale_is_the_first_of_some_images() -> None:
    firsts = first_own_scales(4, 1.0, CHANCE, range(400)).tolist()
    assert all(60 < firsts.count(scale) < 140 for scale in range(4))
    some = first_own_scales(4, 0.25, CHANCE, range(400)).tolist()
    assert some.count(3) > 280
    assert all(share == all_of or share == 3 for share, all_of in zip(some, firsts, strict=True))
    assert first_own_scales(4, 1.0, CHANCE, [7]).tolist() == firsts[7:8]


def test_the_loss_repeats_and_every_weight_learns(tiny_pipeline: StarPipeline) -> None:
    stage, plain = make_stage(tiny_pipeline, own_draws=1.0), make_stage(tiny_pipeline)
    batch: StarBatch = stage.source.batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = stage.loss(batch, 5)[0]
    loss.backward()
    # what the first pass rounded without gradients must not be found by the second
    assert all(parameter.grad is not None for parameter in stage.parameters() if parameter.requires_grad)
    gradients = [parameter.grad for parameter in stage.transformer.blocks.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    torch.manual_seed(42)
    one, again, other = (stage.loss(batch, step)[0].item() for step in (5, 5, 6))
    assert one == again
    assert one != other
    assert one != plain.loss(batch, 5)[0].item()
    assert stage.eval().loss(batch, 5)[0].item() == plain.loss(batch, 5)[0].item()


def test_shares_of_a_batch_give_the_loss_of_the_whole(tiny_pipeline: StarPipeline) -> None:
    stage = make_stage(tiny_pipeline, own_draws=1.0)
    batch = stage.source.batch(0)
    mean = sum(stage.loss(batch.shard(row, 4), 4)[0].item() for row in range(4)) / 4
    assert mean == pytest.approx(stage.loss(batch, 4)[0].item(), rel=1e-5)


def test_first_scales_alone_have_mistakes_too(tiny_pipeline: StarPipeline) -> None:
    stage, plain = make_stage(tiny_pipeline, FIRST, own_draws=1.0), make_stage(tiny_pipeline, FIRST)
    batch = stage.source.batch(0)
    losses = [stage.loss(batch, step)[0].item() for step in range(6)]
    assert len(set(losses)) > 1
    assert len({plain.loss(batch, step)[0].item() for step in range(6)}) == 1


def test_tokens_alone_cannot_be_put_right(tiny_pipeline: StarPipeline) -> None:
    with pytest.raises(OptionError, match="own_draws needs pictures, not their tokens"):
        make_stage(tiny_pipeline, source=make_source(), own_draws=0.5)
    with pytest.raises(OptionError, match="token_noise and own_draws are both set"):
        StarStageConfig(scenes=0, token_noise=0.1, own_draws=0.1)
    with pytest.raises(OptionError, match=r"own_draws must be from 0 to 1, not 1\.5"):
        StarStageConfig(scenes=0, own_draws=1.5)
