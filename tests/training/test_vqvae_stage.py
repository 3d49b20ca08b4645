"""Stage 1: crops, the first codebook, and codes that follow the residuals that chose them."""

from __future__ import annotations

from dataclasses import replace

import torch

from star_cli.models.config import VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.vqvae import (
    CodebookAverage,
    ImageSource,
    VQVAEStage,
    VQVAEStageConfig,
    crop_schedule,
    k_means,
    multi_scale_residuals,
    quieten,
)

MODEL = VQVAEConfig(codebook_size=32, code_dim=8, channels=8, multipliers=(1, 2), blocks=1, patch=4, groups=1)
CONFIG = VQVAEStageConfig(
    batch_size=4, plain_share=0.5, plain_crop=16, plain_batch_size=5, crop=16, crop_batch_size=3, large_share=0.3
)
SCHEDULES = {32: ScaleSchedule((1, 2, 4)), 64: ScaleSchedule((1, 2, 4, 8), 3)}


def test_batches_follow_from_seed_and_step() -> None:
    one, again = (ImageSource(CONFIG, [32, 64], 10, seed=1) for _ in range(2))
    assert all(torch.equal(one.batch(step), again.batch(step)) for step in (0, 9, 10, 31))
    assert not torch.equal(one.batch(0), one.batch(1))
    assert not torch.equal(one.batch(0), ImageSource(CONFIG, [32, 64], 10, seed=2).batch(0))


def test_first_batches_are_crops_and_later_ones_also_whole_scenes() -> None:
    source = ImageSource(CONFIG, [32, 64], 10, seed=0)
    assert {source.batch(step).shape for step in range(10)} == {(5, 3, 16, 16)}
    later = {source.batch(step).shape for step in range(10, 60)}
    assert later == {(3, 3, 16, 16), (4, 3, 32, 32), (1, 3, 64, 64)}


def test_crop_schedule_ends_with_the_side_of_the_crop() -> None:
    assert crop_schedule(ScaleSchedule((1, 2, 4, 8, 16)), 8).sides == (1, 2, 4, 8)
    assert crop_schedule(ScaleSchedule((1, 2, 4, 8, 16)), 6).sides == (1, 2, 4, 6)


def test_k_means_finds_separate_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (middles[:, None] + torch.randn(3, 200, 2, generator=generator)).flatten(0, 1)
    found = k_means(points, 3, generator)
    assert torch.cdist(middles, found).min(dim=1).values.max() < 0.5
    assert len(k_means(points[:2], 5, generator)) == 5


def test_residuals_are_what_is_left_of_the_latent_at_each_side() -> None:
    latent = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    vectors = multi_scale_residuals(latent, SCHEDULES[32])
    assert vectors.shape == (2 * 21, 8)
    assert torch.allclose(vectors[:2], latent.mean((2, 3)), atol=1e-6)
    assert torch.allclose(
        multi_scale_residuals(torch.ones_like(latent), SCHEDULES[32])[2:], torch.zeros(40, 8), atol=1e-5
    )


def test_a_code_moves_to_the_mean_of_the_residuals_that_chose_it() -> None:
    stage = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0)
    quantizer, average = stage.vqvae.quantizer, CodebookAverage(32, 8, replace(CONFIG, revive_below=0.0))
    average.start(quantizer.codebook.weight.detach().clone())
    residuals = torch.full((4, 8), 7.0)
    for _ in range(1500):
        average.update(quantizer, residuals, torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(quantizer.codebook.weight[0], torch.full((8,), 7.0), atol=1e-3)


def test_a_code_that_nobody_chooses_moves_to_a_residual() -> None:
    stage = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0)
    average = CodebookAverage(32, 8, CONFIG)
    average.start(torch.zeros(32, 8))
    average.counts[5] = 0
    average.update(stage.vqvae.quantizer, torch.full((64, 8), 3.0), torch.arange(64) % 4)
    assert torch.allclose(stage.vqvae.quantizer.codebook.weight[5], torch.full((8,), 3.0))


def test_quiet_codebook_says_nothing_of_small_residuals() -> None:
    quantizer = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0).vqvae.quantizer
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        quantizer.codebook.weight.normal_(generator=generator)
        quantizer.codebook.weight[:20] *= 0.05
    before = quantizer.codebook.weight.detach().clone()
    quieten(quantizer, torch.tensor(0.5))
    silent = int(quantizer.codebook.weight.norm(dim=1).argmin())
    assert quantizer.codebook.weight[silent].count_nonzero() == 0
    small, loud = 0.1 * torch.randn(50, 8, generator=generator), before[20:]
    assert set(quantizer.nearest(small).tolist()) == {silent}
    assert quantizer.nearest(loud).tolist() == list(range(20, 32))  # the others are as they were


def test_codebook_stands_still_in_the_quiet_part() -> None:
    torch.manual_seed(0)
    stage = VQVAEStage(MODEL, replace(CONFIG, quiet_share=0.3), SCHEDULES, 10, 0)
    for step in range(5, 8):
        stage.loss(stage.source.batch(step), step)
    codes = stage.vqvae.quantizer.codebook.weight.clone()
    assert codes.norm(dim=1).min() == 0
    loss, _ = stage.loss(stage.source.batch(8), 8)
    assert loss.requires_grad
    assert torch.equal(stage.vqvae.quantizer.codebook.weight, codes)


def test_gradients_pass_straight_through_the_quantiser() -> None:
    torch.manual_seed(0)
    stage = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0)
    for step in (0, 5):  # without quantiser, then with a codebook made on the spot
        stage.zero_grad()
        loss, metrics = stage.loss(stage.source.batch(step), step)
        loss.backward()
        gradient = stage.vqvae.encoder.stem.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
        assert ("codes used" in metrics) == (step >= stage.plain_steps)
    assert not torch.equal(stage.average.sums, torch.zeros_like(stage.average.sums))
