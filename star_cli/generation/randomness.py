"""Where chance comes in: which code is drawn, and in what order positions are fixed.

Letters: B images, l tokens of a scale, V codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Randomness(Protocol):
    """All that is random in a drawing."""

    def choose(self, probabilities: Tensor) -> Tensor:
        """One code for each token: (B, l, V) -> (B, l), int64."""
        ...

    def begin_step(self, positions: int) -> None:
        """A step of stable sampling over `positions` positions begins."""
        ...

    def confidences(self, like: Tensor) -> Tensor:
        """Uniform numbers in 0..1 of the shape and on the device of `like`, (B, l), float32."""
        ...


class PerImage:
    """Each image draws from its own generator, so that it does not depend on its batch.

    Args:
        generators: one per image, on any device: the same seed then gives the same noise wherever the model is.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = tuple(generators)

    def __iter__(self) -> Iterator[torch.Generator]:
        return iter(self.generators)

    def choose(self, probabilities: Tensor) -> Tensor:
        """See `Randomness`."""
        return torch.stack([_categorical(rows, generator) for rows, generator in zip(probabilities, self, strict=True)])

    def begin_step(self, positions: int) -> None:
        """Nothing is drawn in vain."""

    def confidences(self, like: Tensor) -> Tensor:
        """See `Randomness`."""
        rows = [
            torch.rand(row.shape, device=generator.device, generator=generator)
            for row, generator in zip(like, self, strict=True)
        ]
        return torch.stack(rows).to(like.device)


class Official:
    """The random stream of the published code for one image: a generator for the tokens, the global ones for the rest.

    The published code draws, before each step of stable sampling, an array that it does not use, two rows for an image,
    from the global generator of the CPU; and the confidences from the global generator of the device.

    Args:
        seed: of the tokens' generator. Whoever wants the same confidences too seeds the global generators.
        device: where the model is, and the tokens' generator.
    """

    def __init__(self, seed: int, device: torch.device | str):
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def choose(self, probabilities: Tensor) -> Tensor:
        """See `Randomness`."""
        rows = probabilities.flatten(0, -2)
        drawn = torch.multinomial(rows, num_samples=1, replacement=True, generator=self.generator)
        return drawn.view(probabilities.shape[:-1])

    def begin_step(self, positions: int) -> None:
        """Moves the CPU's global generator on as the published code does."""
        torch.rand(2, positions)

    def confidences(self, like: Tensor) -> Tensor:
        """See `Randomness`."""
        return torch.rand(like.shape, device=like.device)


def random_generators(seeds: Sequence[int]) -> PerImage:
    """One generator per image, so that an image does not depend on its batch."""
    return PerImage([torch.Generator().manual_seed(seed) for seed in seeds])


def _categorical(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One draw from each row of (l, V) by a race of exponential clocks: the noise ignores the probabilities."""
    is_staged = probabilities.is_cuda and generator.device.type == "cpu"  # pinned memory lets the GPU fetch it unasked
    clocks = torch.empty(probabilities.shape, device=generator.device, pin_memory=is_staged)
    clocks = clocks.exponential_(generator=generator).to(probabilities.device, non_blocking=is_staged)
    return torch.div(probabilities.detach(), clocks, out=clocks).argmax(-1)
