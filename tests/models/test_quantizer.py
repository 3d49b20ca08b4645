from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from star_cli.errors import OptionError, ShapeError
from star_cli.models.quantizer import choose_phi
from star_cli.models.schedule import ScaleSchedule
from tests.models.builders import CODE_DIM, CODES, SIDES, laws, random_tokens, schedules, seeds, tiny_quantizer


def latent_of(rows: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, CODE_DIM, side, side, generator=torch.Generator().manual_seed(seed))


@laws
@given(schedules, seeds)
def test_f_hat_left_by_tokenising_equals_f_hat_rebuilt_from_the_tokens(schedule: ScaleSchedule, seed: int) -> None:
    quantizer = tiny_quantizer(seed)
    with torch.no_grad():
        encoded = list(quantizer.encode_scales(latent_of(2, schedule.last_side, seed), schedule))
        rebuilt = list(quantizer.decode_scales([tokens for tokens, _ in encoded], schedule))
        last = quantizer.decode_tokens([tokens for tokens, _ in encoded], schedule)
    assert torch.equal(last, rebuilt[-1])
    for (_, f_hat), again in zip(encoded, rebuilt, strict=True):
        assert torch.equal(f_hat, again)


@laws
@given(schedules, seeds)
def test_each_image_is_tokenised_as_if_alone(schedule: ScaleSchedule, seed: int) -> None:
    quantizer, latent = tiny_quantizer(seed), latent_of(4, schedule.last_side, seed)
    with torch.no_grad():
        together = [tokens for tokens, _ in quantizer.encode_scales(latent, schedule)]
        for image in range(4):
            alone = [tokens for tokens, _ in quantizer.encode_scales(latent[image : image + 1], schedule)]
            for many, one in zip(together, alone, strict=True):
                assert torch.equal(many[image], one[0])


@laws
@given(schedules, seeds)
def test_teacher_input_is_f_hat_averaged_over_the_cells_of_the_next_map(schedule: ScaleSchedule, seed: int) -> None:
    quantizer, token_maps = tiny_quantizer(seed), random_tokens(2, schedule, seed)
    with torch.no_grad():
        ours = quantizer.teacher_input(token_maps, schedule)
        latents = list(quantizer.decode_scales(token_maps, schedule))
    expected = [averaged(f_hat, side) for f_hat, side in zip(latents, schedule.sides[1:], strict=False)]
    assert ours.shape == (2, schedule.length - schedule.sizes[0], CODE_DIM)
    if expected:
        torch.testing.assert_close(ours, torch.cat(expected, dim=1))


def averaged(f_hat: Tensor, side: int) -> Tensor:
    """Mean over each cell; cells overlap where the sides do not divide: (B, C, h, w) -> (B, side * side, C)."""
    whole = f_hat.shape[-1]
    edges = [(index * whole // side, math.ceil((index + 1) * whole / side)) for index in range(side)]
    return torch.stack([f_hat[:, :, a:b, c:d].mean((2, 3)) for a, b in edges for c, d in edges], dim=1)


def test_teacher_input_of_the_first_scales_is_the_start_of_the_whole() -> None:
    quantizer, token_maps = tiny_quantizer(), random_tokens(2, SIDES)
    whole, first = quantizer.teacher_input(token_maps, SIDES), quantizer.teacher_input(token_maps[:2], SIDES)
    assert torch.equal(first, whole[:, :4])
    assert quantizer.teacher_input(token_maps[:1], SIDES).shape == (2, 0, CODE_DIM)


def test_nearest_code_is_the_one_of_smallest_distance() -> None:
    quantizer, vectors = tiny_quantizer(), latent_of(3, 4).movedim(1, -1)
    distances = (vectors.double()[..., None, :] - quantizer.codebook.weight.double()).norm(dim=-1)
    assert torch.equal(quantizer.nearest(vectors), distances.argmin(-1))
    codes = torch.arange(CODES)
    assert torch.equal(quantizer.nearest(quantizer.codebook.weight.detach()), codes)


def cubic(distance: float) -> float:
    """The bicubic kernel with a = -0.75."""
    x = abs(distance)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def enlarging(side: int, whole: int) -> Tensor:
    """Weights of bicubic enlargement in one direction, half-pixel centres, edges repeated: (whole, side), float64."""
    weights = torch.zeros(whole, side, dtype=torch.float64)
    for target in range(whole):
        centre = (target + 0.5) * side / whole - 0.5
        for source in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[target, min(max(source, 0), side - 1)] += cubic(centre - source)
    return weights


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_adding_a_scale_enlarges_smooths_and_adds(scale: int) -> None:
    schedule = ScaleSchedule((2, 3, 5))
    quantizer, f_hat = tiny_quantizer(), latent_of(1, 5)
    before, codes = f_hat.clone(), latent_of(1, schedule.sides[scale], seed=1)
    with torch.no_grad():
        ours = quantizer.add_scale(f_hat, codes, scale, schedule)
    assert torch.equal(f_hat, before)

    weights = enlarging(schedule.sides[scale], 5) if scale < 2 else torch.eye(5, dtype=torch.float64)
    large = torch.einsum("yi,bcij,xj->bcyx", weights, codes.double(), weights)
    phi = quantizer.phi[choose_phi(scale, 3, 4)].conv.double()
    padded = torch.zeros(1, CODE_DIM, 7, 7, dtype=torch.float64)
    padded[:, :, 1:6, 1:6] = large
    smooth = torch.zeros_like(large)
    for y in range(5):
        for x in range(5):
            smooth[:, :, y, x] = (
                torch.einsum("ocij,bcij->bo", phi.weight, padded[:, :, y : y + 3, x : x + 3]) + phi.bias
            )
    expected = before.double() + 0.5 * large + 0.5 * smooth
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-6)


def test_phi_follows_the_published_tables() -> None:
    assert [choose_phi(scale, 10, 4) for scale in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [choose_phi(scale, 14, 4) for scale in range(14)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [choose_phi(scale, 6, 1) for scale in range(6)] == [0] * 6
    assert [choose_phi(scale, 6, 6) for scale in range(6)] == list(range(6))
    assert choose_phi(0, 1, 4) == 0


def test_gradients_reach_codebook_and_phi_and_not_the_choice_of_tokens() -> None:
    quantizer, latent = tiny_quantizer(phi_count=1), latent_of(2, 4).requires_grad_()
    *_, (tokens, f_hat) = quantizer.encode_scales(latent, SIDES)
    f_hat.square().sum().backward()
    assert not tokens.requires_grad
    assert latent.grad is None
    assert quantizer.codebook.weight.grad is not None
    assert all(parameter.grad is not None for parameter in quantizer.phi.parameters())


def test_codes_of_another_side_are_refused() -> None:
    quantizer = tiny_quantizer()
    with pytest.raises(ShapeError, match=r"scale 1 of \[1, 2, 4\] cannot be 3 wide in a latent 4 wide"):
        quantizer.add_scale(latent_of(1, 4), latent_of(1, 3), 1, SIDES)
    with pytest.raises(ShapeError, match=r"scale 1 of \[1, 2, 4\] cannot be 2 wide in a latent 8 wide"):
        quantizer.add_scale(latent_of(1, 8), latent_of(1, 2), 1, SIDES)


def test_one_phi_per_scale_knows_one_schedule() -> None:
    quantizer = tiny_quantizer(phi_count=0, phi_scales=2)
    with pytest.raises(OptionError, match="one phi for each of 2 scales, the schedule has 3"):
        list(quantizer.decode_scales(random_tokens(1, SIDES), SIDES))
