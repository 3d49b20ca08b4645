from __future__ import annotations

import torch

from star_cli.generation.relaxation import gumbel_noise, relax, relaxed_codes
from star_cli.models.schedule import ScaleSchedule


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_noise_is_standard_gumbel() -> None:
    noise = gumbel_noise((100_000,), generator())
    assert abs(noise.mean() - 0.5772) < 0.02  # Euler's constant
    assert abs(noise.var() - torch.pi**2 / 6) < 0.03


def test_weights_come_close_to_one_code_towards_the_last_scale() -> None:
    logits = torch.randn(2, 9, 16, generator=generator())
    noise = gumbel_noise((2, 9, 16), generator())
    sharpness = [relax(logits, noise, progress).amax(-1).mean() for progress in (0.0, 0.5, 1.0)]
    assert sharpness == sorted(sharpness)
    assert sharpness[-1] > 0.95


def test_codes_are_a_mixture_at_their_place() -> None:
    schedule, codebook = ScaleSchedule((1, 3)), torch.randn(16, 5, generator=generator())
    logits = torch.full((2, 9, 16), -1e4)
    wanted = torch.randint(0, 16, (2, 9), generator=generator())
    logits.scatter_(-1, wanted[..., None], 0.0)
    codes = relaxed_codes(logits, codebook, 1, schedule, generator())
    torch.testing.assert_close(codes, codebook[wanted].transpose(1, 2).unflatten(2, (3, 3)))
