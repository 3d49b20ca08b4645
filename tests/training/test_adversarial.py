"""The patch discriminator: what it judges, how its loss and the decoder's stay apart, and its place in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import OptionError
from star_cli.models.config import VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.adversarial import AdversarialLoss, PatchDiscriminator, adaptive_weight, judge
from star_cli.training.config import LoopConfig
from star_cli.training.loop import Progress, TrainingRun, train_stage
from star_cli.training.vqvae import VQVAEStage
from star_cli.training.vqvae_batches import ImageBatch
from star_cli.training.vqvae_config import VQVAEStageConfig

MODEL = VQVAEConfig(codebook_size=32, code_dim=8, channels=8, multipliers=(1, 2), blocks=1, patch=4, groups=1)
CONFIG = VQVAEStageConfig(
    batch_size=2,
    plain_share=0.25,
    plain_crop=16,
    plain_batch_size=2,
    crop=16,
    crop_batch_size=2,
    adversarial_weight=0.8,
    adversarial_start=0.5,
    discriminator_width=8,
    discriminator_layers=2,
    discriminator_learning_rate=2e-3,
)
SCHEDULES = {32: ScaleSchedule((1, 2, 4))}
LOOP = LoopConfig(steps=8, learning_rate=1e-3, warmup_steps=1, precision="float32", ema_decay=0.5, save_every=2)


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def new_stage(config: VQVAEStageConfig = CONFIG, kind: type[VQVAEStage] = VQVAEStage) -> VQVAEStage:
    torch.manual_seed(0)
    return kind(MODEL, config, SCHEDULES, LOOP.steps, 0)


def test_three_layers_judge_70_pixels_each() -> None:
    discriminator = PatchDiscriminator(8, layers=3)
    grey = torch.zeros(1, 3, 256, 256, requires_grad=True)
    assert discriminator(grey).shape == (1, 1, 30, 30)  # as in pix2pix
    field = grey
    for module in discriminator.body:  # norms look at the whole image; what one verdict sees is the convolutions' doing
        field = module(field) if isinstance(module, nn.Conv2d) else field
    (gradient,) = torch.autograd.grad(field[0, 0, 15, 15], grey)
    rows, columns = gradient[0].abs().sum(0).nonzero().unbind(1)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (70, 70)


def test_a_verdict_depends_on_its_own_image_alone() -> None:
    discriminator, both = PatchDiscriminator(8, 2), images(2)
    assert torch.allclose(discriminator(both)[:1], discriminator(both[:1]), atol=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_each_sides_gradients_are_its_own(kind: AdversarialLoss) -> None:
    discriminator, real = PatchDiscriminator(8, 2), images()
    restored = images(seed=1).requires_grad_()
    judgement = judge(discriminator, restored, real, kind)
    judgement.loss.backward(retain_graph=True)
    assert restored.grad is not None
    assert restored.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    restored.grad = None
    judgement.discriminator_loss.backward()
    assert restored.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_losses_are_those_of_the_papers() -> None:
    discriminator, real, fake = PatchDiscriminator(8, 2), images(), images(seed=1)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(3)  # verdicts on both sides of the hinge
    told_real, told_fake = discriminator(real), discriminator(fake)
    hinge = judge(discriminator, fake, real, "hinge")
    assert torch.allclose(hinge.loss, -told_fake.mean(), atol=1e-6)
    expected = 0.5 * ((1 - told_real).clamp(min=0).mean() + (1 + told_fake).clamp(min=0).mean())
    assert torch.allclose(hinge.discriminator_loss, expected, atol=1e-6)
    soft = judge(discriminator, fake, real, "non_saturating")
    assert torch.allclose(soft.loss, -F.logsigmoid(told_fake).mean(), atol=1e-6)
    expected = -0.5 * (F.logsigmoid(told_real).mean() + F.logsigmoid(-told_fake).mean())
    assert torch.allclose(soft.discriminator_loss, expected, atol=1e-6)


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer() -> None:
    weight = torch.tensor([2.0, -1.0], requires_grad=True)
    given = adaptive_weight((3 * weight).sum(), (weight * torch.tensor([0.0, 0.5])).sum(), weight)
    assert given.item() == pytest.approx(3 * 2**0.5 / 0.5, rel=1e-4)
    flat = adaptive_weight(weight.sum(), (0 * weight).sum(), weight)
    assert flat.item() == 1e4  # clamped


def test_the_discriminator_begins_late_and_then_takes_part() -> None:
    stage = new_stage()
    for step in (0, 3, 4):
        stage.zero_grad()
        loss, figures = stage.loss(stage.source.batch(step), step)
        loss.backward()
        has_begun = step >= 4
        assert ("discriminator loss" in figures) == has_begun
        assert all((each.grad is not None) == has_begun for each in stage.opponent().parameters())  # type: ignore[union-attr]


def test_its_own_loss_does_not_show_in_the_value() -> None:
    stage = new_stage()
    batch = stage.source.batch(4)
    loss, figures = stage.loss(batch, 4)
    without, _ = new_stage(replace(CONFIG, adversarial_weight=0.0)).loss(batch, 4)
    added = figures["adversarial weight"] * figures["adversarial"]
    assert torch.allclose(loss, without + added, atol=1e-5)


def test_fixed_weight_is_the_one_given() -> None:
    stage = new_stage(replace(CONFIG, adversarial_adaptive=False))
    _, figures = stage.loss(stage.source.batch(4), 4)
    assert figures["adversarial weight"] == pytest.approx(0.8)


def test_the_discriminator_has_its_own_optimiser_and_rate(tmp_path: Path) -> None:
    stage = new_stage()
    run = TrainingRun(stage, LOOP, tmp_path)
    own, against = run.optimizers
    mine = {id(parameter) for group in own.param_groups for parameter in group["params"]}
    theirs = {id(parameter) for group in against.param_groups for parameter in group["params"]}
    assert stage.discriminator is not None
    assert theirs == {id(parameter) for parameter in stage.discriminator.parameters()}
    assert not mine & theirs
    assert (own.defaults["lr"], against.defaults["lr"]) == (1e-3, 2e-3)


def test_it_learns_to_tell_decoded_images_apart(tmp_path: Path) -> None:
    config = replace(CONFIG, adversarial_start=0.0, plain_share=0.0, crop_share=0.0)
    steps: list[Progress] = []
    stage = new_stage(config)
    before = [parameter.detach().clone() for parameter in stage.discriminator.parameters()]  # type: ignore[union-attr]
    train_stage(stage, LOOP, tmp_path, steps.append)
    assert steps[-1].metrics["discriminator loss"] < steps[0].metrics["discriminator loss"]
    after = list(stage.discriminator.parameters())  # type: ignore[union-attr]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


class Cut(VQVAEStage):
    """Ends in the middle."""

    def loss(self, batch: ImageBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 5:
            raise RuntimeError("power cut")
        return super().loss(batch, step)


def test_a_run_with_a_discriminator_resumes_exactly(tmp_path: Path) -> None:
    whole, cut, resumed = new_stage(), new_stage(kind=Cut), new_stage()
    train_stage(whole, LOOP, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power cut"):
        train_stage(cut, LOOP, tmp_path / "cut")
    train_stage(resumed, LOOP, tmp_path / "cut")
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_pictures_too_small_to_judge_are_refused() -> None:
    with pytest.raises(OptionError, match="16 pixels"):
        new_stage(replace(CONFIG, discriminator_layers=3))
