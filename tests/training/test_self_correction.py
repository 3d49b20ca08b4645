"""The model's own draws among what it sees: later tokens make up for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from star_cli.data.source import ShapeScenes
from star_cli.errors import OptionError
from star_cli.models.schedule import ScaleSchedule
from star_cli.pipeline import StarPipeline
from star_cli.training.noise import Chance
from star_cli.training.self_correction import own_draws, quantize_again, replaced_tokens
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


def latent_of(pipeline: StarPipeline, stage: StarStage) -> Tensor:
    return stage.reader.latent(stage.source.batch(0))


def split(tokens: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
    return [tokens[:, schedule.slice(scale)] for scale in range(len(schedule))]


def test_without_a_mistake_nothing_is_to_be_put_right(tiny_pipeline: StarPipeline) -> None:
    schedule, stage = SCHEDULES[32], make_stage(tiny_pipeline)
    batch = stage.source.batch(0)
    none = torch.zeros(4, schedule.offsets[-2], dtype=torch.bool)
    drawn = torch.zeros(4, schedule.offsets[-2], dtype=torch.int64)
    quantizer = tiny_pipeline.vqvae.quantizer
    asked, seen = quantize_again(quantizer, latent_of(tiny_pipeline, stage), drawn, none, schedule, len(schedule))
    assert torch.equal(asked, stage.reader.tokens(batch))
    assert torch.equal(seen, asked)


def test_later_tokens_make_up_for_mistakes(tiny_pipeline: StarPipeline) -> None:
    schedule, quantizer = SCHEDULES[32], tiny_pipeline.vqvae.quantizer
    latent = latent_of(tiny_pipeline, make_stage(tiny_pipeline))
    replaced = torch.zeros(4, schedule.offsets[-2], dtype=torch.bool)
    replaced[:, 0], replaced[:, 3] = True, True
    drawn = torch.randint(16, replaced.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        asked, seen = quantize_again(quantizer, latent, drawn, replaced, schedule, len(schedule))
        assert torch.equal(seen[:, :5], torch.where(replaced, drawn, asked[:, :5]))
        assert torch.equal(seen[:, 5:], asked[:, 5:])  # nothing looks at the last scale
        right = quantizer.decode_tokens(split(seen, schedule), schedule)
        f_hat = torch.zeros_like(latent)
        for scale, tokens in enumerate(split(seen, schedule)):
            nearest = quantizer.nearest(quantizer.next_input(latent - f_hat, schedule.sides[scale]))
            assert torch.equal(nearest, asked[:, schedule.slice(scale)])
            f_hat = quantizer.add_scale(f_hat, quantizer.look_up(tokens, schedule.sides[scale]), scale, schedule)
        assert torch.equal(f_hat, right)
        stale = [tokens for tokens, _ in quantizer.encode_scales(latent, schedule)]
        stale = [
            torch.where(replaced[:, schedule.slice(scale)], drawn[:, schedule.slice(scale)], tokens)
            for scale, tokens in enumerate(stale[:-1])
        ] + stale[-1:]
        wrong = quantizer.decode_tokens(stale, schedule)
    assert (latent - right).square().mean() < (latent - wrong).square().mean()


def test_a_draw_follows_the_model_and_the_row() -> None:
    logits = torch.full((2, 5, 16), -30.0)
    logits[0, :, 7], logits[1, :, 2] = 30.0, 30.0
    assert own_draws(logits, CHANCE, [0, 1]).tolist() == [[7] * 5, [2] * 5]
    flat = torch.zeros(2, 400, 16)
    both = own_draws(flat, CHANCE, [4, 5])
    assert torch.equal(own_draws(flat[1:], CHANCE, [5])[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert len(both.unique()) == 16


def test_each_row_has_a_share_of_its_own() -> None:
    shares = replaced_tokens(2000, 0.5, CHANCE, range(30)).float().mean(1)
    assert shares.max() < 0.55
    assert shares.max() - shares.min() > 0.3
    assert torch.equal(replaced_tokens(9, 0.5, CHANCE, [7])[0], replaced_tokens(9, 0.5, CHANCE, range(8))[7])


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
