"""PSNR, SSIM, usage and rFID of a VQVAE's copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from star_cli.errors import DataError, ShapeError
from star_cli.evaluation import reconstruction
from star_cli.evaluation.frechet import FeatureStatistics, frechet_distance
from star_cli.evaluation.reconstruction import evaluate_reconstruction, psnr, read_pictures, ssim
from star_cli.models.float32 import exact_float32
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE
from tests.conftest import TINY_VQVAE
from tests.training.pictures import Pictures

SCHEDULE = ScaleSchedule((1, 2, 4))


def pair(size: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and noisy copies, (2, 3, size, size), 0..1."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, size, size, generator=generator)
    return images, (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def vqvae() -> MultiScaleVQVAE:
    torch.manual_seed(0)
    return MultiScaleVQVAE(TINY_VQVAE).eval()


def slow_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Of one channel, window by window, as the paper's equations read."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            x, y = (each[top : top + 11, left : left + 11] for each in (one, other))
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            spread_x, spread_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
            together = (window * (x - mean_x) * (y - mean_y)).sum()
            c1, c2 = 0.01**2, 0.03**2
            light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            values.append(light * (2 * together + c2) / (spread_x + spread_y + c2))
    return float(np.mean(values))


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(grey, grey + 0.1).item() == pytest.approx(20, abs=1e-4)
    assert psnr(grey, grey + 0.01).item() == pytest.approx(40, abs=1e-3)
    assert psnr(grey, grey).item() == pytest.approx(100)


def test_ssim_is_the_papers() -> None:
    images, copies = pair()
    for image, copy, told in zip(images, copies, ssim(images, copies), strict=True):
        channels = [slow_ssim(a, b) for a, b in zip(image.double().numpy(), copy.double().numpy(), strict=True)]
        assert told.item() == pytest.approx(float(np.mean(channels)), abs=1e-6)


def test_ssim_of_equal_images_is_one_and_needs_room_for_its_window() -> None:
    images, copies = pair()
    assert torch.allclose(ssim(images, images), torch.ones(2))
    assert (ssim(images, copies) < 1).all()
    with pytest.raises(ShapeError, match="at least 11"):
        ssim(*pair(size=10))


def test_scores_are_those_of_all_pictures_whatever_the_batches() -> None:
    model, source = vqvae(), Pictures(7)
    one, other = (evaluate_reconstruction(model, source, 32, 7, schedule=SCHEDULE, batch_size=size) for size in (7, 3))
    assert one.psnr == pytest.approx(other.psnr, rel=1e-5)
    assert one.ssim == pytest.approx(other.ssim, rel=1e-4)
    assert one.used_by_side == other.used_by_side
    images, _ = read_pictures(source, 32, range(7))
    with torch.no_grad():
        scales = list(model.quantizer.encode_scales(model.encode(images), SCHEDULE))
        copies = model.decode(scales[-1][1])
    assert one.psnr == pytest.approx(psnr((images + 1) / 2, (copies + 1) / 2).mean().item(), rel=1e-5)
    chosen = [set(tokens.flatten().tolist()) for tokens, _ in scales]
    assert one.used_by_side == pytest.approx({side: len(c) / 16 for side, c in zip((1, 2, 4), chosen, strict=True)})
    assert one.used == pytest.approx(len(set.union(*chosen)) / 16)
    assert one.rfid is None
    assert one.count == 7


class Colours:
    """Mean colours as features."""

    width = 3

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        return images.float().mean((2, 3))


def test_rfid_is_the_distance_of_pictures_and_copies() -> None:
    model, source = vqvae(), Pictures(8)
    scores = evaluate_reconstruction(model, source, 32, 8, schedule=SCHEDULE, features=Colours(), batch_size=3)
    images, _ = read_pictures(source, 32, range(8))
    with torch.no_grad():
        *_, (_, f_hat) = model.quantizer.encode_scales(model.encode(images), SCHEDULE)
        copies = model.decode(f_hat)
    real, copied = FeatureStatistics(3), FeatureStatistics(3)
    for told, each in ((real, images), (copied, copies)):
        told.add(((each + 1) * 127.5).round().mean((2, 3)))
    assert scores.rfid == pytest.approx(frechet_distance(real, copied), rel=1e-3)
    assert scores.figures()["held-out rfid"] == scores.rfid


def test_unreadable_pictures_are_passed_over_and_named() -> None:
    told: list[tuple[int, int]] = []
    source = Pictures(5, broken=[1, 4])

    def report(done: int, total: int) -> None:
        told.append((done, total))

    scores = evaluate_reconstruction(vqvae(), source, 32, 5, schedule=SCHEDULE, batch_size=2, on_batch=report)
    assert scores.count == 3
    assert scores.unreadable == ("picture 1", "picture 4")
    assert told == [(2, 5), (4, 5), (5, 5)]
    with pytest.raises(DataError, match="none of 2"):
        evaluate_reconstruction(vqvae(), Pictures(2, broken=[0, 1]), 32, 2, schedule=SCHEDULE)
    with pytest.raises(DataError, match="holds 2"):
        evaluate_reconstruction(vqvae(), Pictures(2), 32, 3, schedule=SCHEDULE)


def test_precision_of_the_surroundings_does_not_matter() -> None:
    model, source = vqvae(), Pictures(3)
    plain = evaluate_reconstruction(model, source, 32, 3, schedule=SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = evaluate_reconstruction(model, source, 32, 3, schedule=SCHEDULE)
    assert plain == mixed


def test_float32_is_exact_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    @contextmanager
    def watched(device: torch.device) -> Iterator[None]:
        asked.append(device)
        with exact_float32(device):
            yield

    monkeypatch.setattr(reconstruction, "exact_float32", watched)
    evaluate_reconstruction(vqvae(), Pictures(2), 32, 2, schedule=SCHEDULE)
    assert asked == [torch.device("cpu")]
