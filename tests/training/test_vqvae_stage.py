"""Stage 1: crops, the first codebook, and codes that follow the residuals that chose them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from star_cli.errors import OptionError, TrainingError
from star_cli.models.config import VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.codebook import (
    MOST_VECTORS,
    CodebookAverage,
    CodebookUsage,
    k_means,
    multi_scale_residuals,
    parked_codes,
    quieten,
    without_parked_codes,
)
from star_cli.training.config import LoopConfig
from star_cli.training.loop import Progress, train_stage
from star_cli.training.settings import compare
from star_cli.training.vqvae import VQVAEStage, crop_schedule
from star_cli.training.vqvae_batches import ImageBatch
from star_cli.training.vqvae_config import VQVAEStageConfig
from tests.training.pictures import Pictures

MODEL = VQVAEConfig(codebook_size=32, code_dim=8, channels=8, multipliers=(1, 2), blocks=1, patch=4, groups=1)
CONFIG = VQVAEStageConfig(
    batch_size=4, plain_share=0.5, plain_crop=16, plain_batch_size=5, crop=16, crop_batch_size=3, large_share=0.3
)
LOOP = LoopConfig(
    steps=12, learning_rate=2e-3, warmup_steps=2, beta2=0.99, weight_decay=0.0, ema_decay=0.5, precision="float32"
)
SCHEDULES = {32: ScaleSchedule((1, 2, 4)), 64: ScaleSchedule((1, 2, 4, 8), 3)}


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


def test_k_means_looks_at_no_more_vectors_than_tell_something(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    split = torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda self, size: seen.append(len(self)) or split(self, size))
    codes = k_means(torch.randn(MOST_VECTORS * 4 + 100, 2), 4, torch.Generator().manual_seed(0), rounds=1)
    assert seen == [MOST_VECTORS * 4]
    assert codes.shape == (4, 2)


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
    for _ in range(1500):
        average.note([torch.full((2, 2, 8), 7.0)], [torch.zeros(2, 2, dtype=torch.int64)])
        average.move(quantizer)
    assert torch.allclose(quantizer.codebook.weight[0], torch.full((8,), 7.0), atol=1e-3)


def test_a_code_that_nobody_chose_for_ages_stays_where_it_was() -> None:
    quantizer = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0).vqvae.quantizer
    before = quantizer.codebook.weight.detach().clone()
    average = CodebookAverage(32, 8, replace(CONFIG, revive_below=0.0))
    average.start(before)
    average.counts[5], average.sums[5] = 0, 0  # where thousands of steps end in float32
    average.note([torch.full((2, 2, 8), 7.0)], [torch.zeros(2, 2, dtype=torch.int64)])
    average.move(quantizer)
    assert torch.equal(quantizer.codebook.weight[5], before[5])


@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_a_code_that_nobody_chooses_moves_to_a_residual(codebook: Literal["average", "gradient"]) -> None:
    quantizer = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0).vqvae.quantizer
    before = quantizer.codebook.weight.detach().clone()
    average = CodebookAverage(32, 8, replace(CONFIG, codebook=codebook))
    average.start(before)
    average.counts[5] = 0
    average.note([torch.full((4, 16, 8), 3.0)], [torch.arange(64).view(4, 16) % 4])
    average.move(quantizer)
    assert torch.allclose(quantizer.codebook.weight[5], torch.full((8,), 3.0))
    if codebook == "gradient":  # the others are the optimiser's
        assert torch.equal(quantizer.codebook.weight[6:], before[6:])


def test_a_batch_in_parts_moves_the_codebook_as_a_whole_one() -> None:
    generator = torch.Generator().manual_seed(0)
    residuals, tokens = torch.randn(4, 16, 8, generator=generator), torch.arange(64).view(4, 16) % 8
    moved = []
    for parts in (1, 2):
        torch.manual_seed(0)
        stage = VQVAEStage(MODEL, replace(CONFIG, revive_below=0.0), SCHEDULES, 10, 0)
        stage.average.start(stage.vqvae.quantizer.codebook.weight.detach())
        for part in range(parts):
            stage.average.note([residuals[part::parts]], [tokens[part::parts]])
        stage.after_step(0)
        stage.after_step(1)  # nothing was noted for it
        moved.append(stage.vqvae.quantizer.codebook.weight.detach())
    assert torch.allclose(*moved, atol=1e-6)


def test_usage_counts_the_codes_each_side_chose_lately() -> None:
    usage = CodebookUsage(32, [1, 2, 4, 2], window=10)
    schedule = SCHEDULES[32]
    first = [torch.full((2, side * side), side) for side in schedule.sides]  # one code a side
    usage.note(schedule, first, step=0)
    usage.note(schedule, [*first[:2], torch.arange(32).view(2, 16)], step=5)
    figures = {name: value.item() for name, value in usage.figures(schedule, 5).items()}
    assert figures == {"codes used": 1.0, "used side 1": 1 / 32, "used side 2": 1 / 32, "used side 4": 1.0}
    assert usage.figures(schedule, 14)["used side 4"] == 1
    assert usage.figures(schedule, 15)["used side 4"] == 0


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


def test_codes_that_nothing_chooses_are_left_out() -> None:
    torch.manual_seed(0)
    vqvae = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0).vqvae.eval()
    codes = vqvae.quantizer.codebook.weight
    with torch.no_grad():
        codes.normal_()
        codes[5:20] *= 0.05
    assert without_parked_codes(vqvae) is vqvae
    quieten(vqvae.quantizer, torch.tensor(0.5))
    assert parked_codes(codes).sum() == 14  # all short ones but the shortest, which is zero
    smaller = without_parked_codes(vqvae)
    assert (smaller.config.codebook_size, vqvae.config.codebook_size) == (18, 32)
    images = torch.rand(2, 3, 32, 32)
    places = (~parked_codes(codes)).nonzero().flatten()
    for before, tokens in zip(*(each.tokenize(images, SCHEDULES[32]) for each in (vqvae, smaller)), strict=True):
        assert torch.equal(places[tokens], before)


def test_codebook_stands_still_in_the_quiet_part() -> None:
    torch.manual_seed(0)
    stage = VQVAEStage(MODEL, replace(CONFIG, quiet_share=0.3), SCHEDULES, 10, 0)
    for step in range(5, 8):
        stage.loss(stage.source.batch(step), step)
        stage.after_step(step)
    codes = stage.vqvae.quantizer.codebook.weight.clone()
    assert codes.norm(dim=1).min() == 0
    loss, _ = stage.loss(stage.source.batch(8), 8)
    stage.after_step(8)
    assert loss.requires_grad
    assert torch.equal(stage.vqvae.quantizer.codebook.weight, codes)


@pytest.mark.parametrize(("first", "then"), [(10, 8), (8, 10)])
def test_a_run_made_shorter_or_longer_has_a_quiet_codebook_in_the_end(tmp_path: Path, first: int, then: int) -> None:
    """The quiet part begins in step 7 of 10, and in step 6 of 8: the one is past when the run is made shorter."""
    config = replace(CONFIG, quiet_share=0.3, plain_share=0.2)
    stop = 7

    def stage(steps: int) -> VQVAEStage:
        torch.manual_seed(0)
        return VQVAEStage(MODEL, config, SCHEDULES, steps, 0)

    train_stage(begun := stage(first), replace(LOOP, steps=stop, decay="none"), tmp_path)
    assert (begun.vqvae.quantizer.codebook.weight.norm(dim=1).min() == 0) == (first == 8)
    train_stage(ended := stage(then), replace(LOOP, steps=then, decay="none"), tmp_path)
    assert ended.vqvae.quantizer.codebook.weight.norm(dim=1).min() == 0


def test_the_average_of_the_codebook_has_the_silent_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = VQVAEStage(MODEL, replace(CONFIG, quiet_share=0.2), SCHEDULES, 10, 0)
    train_stage(stage, replace(LOOP, steps=10, ema_decay=0.999), tmp_path)
    assert stage.vqvae.quantizer.codebook.weight.norm(dim=1).min() == 0


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


# Losses of the tiny run below as they were before stage 1 learned from other data and by other rules (float32).
CURVE = [2.07187, 1.86552, 1.77518, 1.05903, 1.68166, 1.74500, 1.47416, 1.76719, 1.40335, 1.73134, 1.30230, 1.50209]
PINNED = VQVAEStageConfig(
    batch_size=4,
    plain_share=0.25,
    plain_crop=16,
    plain_batch_size=5,
    crop=16,
    crop_batch_size=3,
    large_share=0.3,
    revive_below=0.3,  # codes die in a run this short, too
)


def run(
    config: VQVAEStageConfig, folder: Path, loop: LoopConfig = LOOP, **more: Any
) -> tuple[VQVAEStage, list[Progress]]:
    torch.manual_seed(3)
    stage = VQVAEStage(MODEL, config, SCHEDULES, loop.steps, 3, **more)
    steps: list[Progress] = []
    train_stage(stage, loop, folder, steps.append)
    return stage, steps


def test_scenes_are_learned_as_ever(tmp_path: Path) -> None:
    _, steps = run(PINNED, tmp_path)
    assert [step.metrics["loss"] for step in steps] == pytest.approx(CURVE, abs=5e-4)


def test_the_optimiser_learns_the_codebook_as_published(tmp_path: Path) -> None:
    published = replace(
        PINNED, codebook="gradient", codebook_start="uniform", plain_share=0, quiet_share=0, crop_share=0
    )
    stage = VQVAEStage(MODEL, published, SCHEDULES, 12, 3)
    loss, figures = stage.loss(stage.source.batch(0), 0)
    loss.backward()
    codes = stage.vqvae.quantizer.codebook.weight
    assert codes.abs().max() <= 1 / 32  # made in the very first step
    assert codes.grad is not None
    assert codes.grad.abs().sum() > 0
    assert "codes used" in figures
    trained, _ = run(published, tmp_path)
    assert not torch.equal(trained.vqvae.quantizer.codebook.weight, codes)
    assert trained.vqvae.quantizer.codebook.weight.isfinite().all()


def test_a_set_of_pictures_is_learned_and_judged(tmp_path: Path) -> None:
    loop = replace(LOOP, steps=6, evaluate_every=3, preview_every=6)
    stage, steps = run(replace(PINNED, evaluate_count=2), tmp_path, loop, data=Pictures(30, broken=range(4, 12)))
    assert all(step.metrics["loss"] > 0 for step in steps)
    assert [("held-out psnr" in step.metrics) for step in steps] == [False, False, True, False, False, True]
    assert {"held-out ssim", "held-out codes used", "held-out used side 4"} <= set(steps[2].metrics)
    assert stage.unreadable
    assert set(stage.unreadable) <= {f"picture {index}" for index in range(4, 12)}
    assert steps[-1].metrics["unreadable"] == len(stage.unreadable)
    assert (tmp_path / "preview-000006.png").is_file()


def test_evaluating_changes_nothing(tmp_path: Path) -> None:
    judged, _ = run(PINNED, tmp_path / "judged", replace(LOOP, evaluate_every=4))
    plain, _ = run(PINNED, tmp_path / "plain")
    for one, other in zip(judged.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_bad_settings_are_refused() -> None:
    for change in ({"adversarial_weight": -1.0}, {"codebook": "mean"}, {"flip_share": 2.0}, {"usage_window": 0}):
        with pytest.raises(OptionError, match=next(iter(change))):
            VQVAEStageConfig.from_dict(change)


@pytest.mark.parametrize(
    ("switch", "said"), [("checkpointing", "vqvae keeps all activations"), ("compile", "vqvae has no blocks")]
)
def test_switches_of_the_transformer_are_refused(tmp_path: Path, switch: str, said: str) -> None:
    stage = VQVAEStage(MODEL, CONFIG, SCHEDULES, LOOP.steps, 0)
    with pytest.raises(OptionError, match=said):
        train_stage(stage, replace(LOOP, **{switch: True}), tmp_path)


class Struck(VQVAEStage):
    """The pictures of one step are infinite."""

    struck = 4

    def loss(self, batch: ImageBatch, step: int) -> tuple[torch.Tensor, dict[str, Any]]:
        return super().loss(replace(batch, images=batch.images * torch.inf) if step == self.struck else batch, step)


@pytest.mark.parametrize("codebook", ["average", "gradient"])
@pytest.mark.parametrize("struck", [3, 5, 9])  # the codebook is made, it learns, it becomes quiet
def test_a_step_without_finite_numbers_leaves_the_codebook_alone(
    tmp_path: Path, codebook: Literal["average", "gradient"], struck: int
) -> None:
    torch.manual_seed(3)
    stage = Struck(MODEL, replace(PINNED, codebook=codebook, quiet_share=0.25), SCHEDULES, LOOP.steps, 3)
    stage.struck, steps = struck, list[Progress]()
    train_stage(stage, LOOP, tmp_path, steps.append)
    assert steps[-1].metrics["skipped"] == 1
    assert all(0 < step.metrics["loss"] < 4 for step in steps if step.step != struck + 1)
    lengths = stage.vqvae.quantizer.codebook.weight.norm(dim=1)
    assert lengths.isfinite().all()
    assert lengths.min() == 0  # quiet in the end
    assert stage.average.sums.isfinite().all()


def test_one_infinite_residual_moves_and_revives_nothing() -> None:
    quantizer = VQVAEStage(MODEL, CONFIG, SCHEDULES, 10, 0).vqvae.quantizer
    before = quantizer.codebook.weight.detach().clone()
    average = CodebookAverage(32, 8, replace(CONFIG, revive_below=0.3))
    average.start(before)
    average.counts[5] = 0
    residuals = torch.ones(2, 16, 8)
    residuals[0, 3] = torch.nan
    average.note([residuals], [torch.arange(32).view(2, 16) % 4])
    average.move(quantizer)
    assert torch.equal(quantizer.codebook.weight, before)
    average.note([torch.ones(2, 16, 8)], [torch.arange(32).view(2, 16) % 4])  # nothing of it is left
    average.move(quantizer)
    assert torch.allclose(quantizer.codebook.weight[5], torch.ones(8))


def test_the_scales_may_not_change_on_the_way() -> None:
    stage, other = (
        VQVAEStage(MODEL, CONFIG, {**SCHEDULES, 32: ScaleSchedule(sides)}, 10, 0) for sides in ((1, 2, 4), (1, 3, 4))
    )
    with pytest.raises(TrainingError, match=r"what changed: resolutions.32 \[\[1, 2, 4\], 0\] -> \[\[1, 3, 4\], 0\]$"):
        compare(stage.settings(), other.settings())
    assert stage.settings()["model"] == MODEL.to_dict()


def test_checkpoints_with_the_bound_of_former_versions_go_on(tmp_path: Path) -> None:
    whole, _ = run(PINNED, tmp_path, replace(LOOP, save_every=6))
    state = torch.load(tmp_path / "checkpoint-00000006.pt", weights_only=True)
    state["stage"]["average.dead_below"] = torch.zeros(())
    for name in ("model", "resolutions"):  # nor did they tell of the model
        del state["settings"][name]
    torch.save({**state, "format": 2}, tmp_path / "old.pt")
    torch.manual_seed(3)
    resumed = VQVAEStage(MODEL, PINNED, SCHEDULES, LOOP.steps, 3)
    train_stage(resumed, LOOP, tmp_path / "on", resume=tmp_path / "old.pt")
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
