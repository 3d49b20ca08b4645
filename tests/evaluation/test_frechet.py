"""The Frechet distance of Gaussians, by formula and by other means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from star_cli.errors import OptionError
from star_cli.evaluation.frechet import FeatureStatistics, frechet_distance


def statistics(vectors: Tensor, parts: int = 1) -> FeatureStatistics:
    told = FeatureStatistics(vectors.shape[1])
    for part in vectors.chunk(parts):
        told.add(part)
    return told


def cloud(count: int, width: int, seed: int) -> Tensor:
    """Vectors of a Gaussian that leans, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    lean = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ lean + 100 * torch.rand(width, generator=generator)


def test_mean_and_covariance_are_those_of_all_batches_together() -> None:
    vectors = cloud(300, 5, 0)
    told = statistics(vectors, parts=7)
    assert torch.allclose(told.mean, vectors.double().mean(0))
    assert torch.allclose(told.covariance, torch.cov(vectors.double().T), atol=1e-6)


def test_equal_clouds_are_no_distance_apart() -> None:
    vectors = cloud(200, 6, 0)
    assert frechet_distance(statistics(vectors), statistics(vectors, 3)) == pytest.approx(0, abs=1e-6)


def test_a_shift_counts_its_square() -> None:
    vectors = cloud(200, 6, 0)
    assert frechet_distance(statistics(vectors), statistics(vectors + 2)) == pytest.approx(6 * 4, rel=1e-4)


def test_in_one_dimension_it_is_the_formula() -> None:
    one, other = torch.randn(500, 1) * 3 + 1, torch.randn(400, 1) * 0.5 - 2
    expected = (one.mean() - other.mean()) ** 2 + (one.std() - other.std()) ** 2
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected.item(), rel=1e-4)


def test_leaning_gaussians_agree_with_the_root_of_the_product() -> None:
    one, other = cloud(400, 4, 0), cloud(400, 4, 1)
    first, second = (torch.cov(each.double().T) for each in (one, other))
    # C1 C2 is similar to a positive matrix: its eigenvalues are real, and their roots sum to the trace of its root
    cross = torch.linalg.eigvals(first @ second).real.sqrt().sum()
    apart = (one.double().mean(0) - other.double().mean(0)).square().sum()
    expected = apart + first.trace() + second.trace() - 2 * cross
    assert frechet_distance(statistics(one), statistics(other)) == pytest.approx(expected.item(), rel=1e-6)


def test_fewer_pictures_than_channels_do_no_harm() -> None:
    one, other = cloud(5, 40, 0), cloud(5, 40, 1)
    assert frechet_distance(statistics(one), statistics(other)) > 0
    assert frechet_distance(statistics(one), statistics(one)) == pytest.approx(0, abs=1e-3)


def test_one_picture_has_no_spread() -> None:
    with pytest.raises(OptionError, match="at least 2"):
        frechet_distance(statistics(torch.zeros(1, 3)), statistics(torch.zeros(5, 3)))
