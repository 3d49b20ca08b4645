"""The Frechet distance of two clouds of features, each taken for a Gaussian: FID where they are Inception's (Heusel
et al. 2017, equation 6).

Letters: n vectors, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from star_cli.errors import OptionError


class FeatureStatistics:
    """Mean and covariance of vectors that come batch by batch; float64, on the CPU."""

    def __init__(self, width: int):
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._products = torch.zeros(width, width, dtype=torch.float64)
        self._origin = torch.zeros(width, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in vectors, (n, D)."""
        vectors = features.detach().to("cpu", torch.float64)
        if not self.count and len(vectors):
            self._origin = vectors.mean(0)  # near the mean, squares do not swallow the spread
        vectors = vectors - self._origin
        self.count += len(vectors)
        self._sum += vectors.sum(0)
        self._products += vectors.T @ vectors

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased.

        Raises:
            OptionError: fewer than two vectors have none.
        """
        if self.count < 2:
            raise OptionError(f"a Frechet distance needs at least 2 pictures, not {self.count}")
        mean = self._sum / self.count
        return (self._products - self.count * torch.outer(mean, mean)) / (self.count - 1)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no
    complex numbers come up, and a covariance without full rank does no harm.
    """
    first, second = one.covariance, other.covariance
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    middle = root @ second @ root
    cross = torch.linalg.eigvalsh((middle + middle.T) / 2).clamp(min=0).sqrt().sum()
    apart = (one.mean - other.mean).square().sum()
    return max(0.0, (apart + first.trace() + second.trace() - 2 * cross).item())
