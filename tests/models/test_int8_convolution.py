"""Convolutions of the decoder in int8: the sums of whole numbers are exact, and the picture hardly changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from star_cli.generation.decoding import TokenDecoder
from star_cli.images import to_uint8
from star_cli.models import int8_convolution
from star_cli.models.int8_convolution import Int8Convolution, has_int8_convolutions, round_map
from star_cli.models.int8_products import round_rows
from star_cli.models.strips import StripDecoder
from star_cli.pipeline import StarPipeline
from tests.models.builders import laws, numbers, seeds, tiny_vqvae
from tests.models.test_strips import f_hat_of

needs_them = pytest.mark.skipif(not has_int8_convolutions(), reason="torch has none for this processor")


@laws
@given(st.floats(-50, 50), st.floats(0, 100), st.sampled_from([torch.float32, torch.bfloat16]), seeds)
def test_rounded_numbers_are_half_a_step_off_and_zero_is_exact(
    least: float, spread: float, dtype: torch.dtype, seed: int
) -> None:
    x = (torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * spread + least).to(dtype)
    x[0, 0, 0, 0] = 0.0
    codes, step, zero = round_map(x)
    assert codes.dtype == torch.uint8
    assert codes[0, 0, 0, 0] == zero
    back = (codes.double() - zero) * step
    assert ((back - x.double()).abs() <= 0.501 * step).all()
    assert step == pytest.approx((max(x.max().item(), 0.0) - min(x.min().item(), 0.0)) / 254, abs=1e-30)


@needs_them
@pytest.mark.parametrize("least", [-5.0, -0.28, 0.0, 1.0])
@pytest.mark.parametrize(("kernel", "padding"), [(3, (1, 1)), (3, (0, 1)), (2, (1, 1)), (2, (0, 1))])
def test_convolution_is_that_of_the_rounded_numbers(least: float, kernel: int, padding: tuple[int, int]) -> None:
    x = numbers(1, 24, 9, 7).clamp(min=least)
    weight, bias = numbers(16, 24, kernel, kernel, seed=1), numbers(16, seed=2)
    codes, step, zero = round_map(x)
    rounded, scales = round_rows(weight.flatten(1))
    whole = F.conv2d(codes.double() - zero, rounded.view(weight.shape).double(), padding=padding)
    expected = whole * step * scales[:, :, None].double() + bias.double()[:, None, None]
    found = Int8Convolution(weight, bias)(x, padding)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


@needs_them
def test_bfloat16_comes_out_where_it_went_in() -> None:
    x, weight, bias = (numbers(*shape).bfloat16() for shape in ((1, 8, 6, 6), (8, 8, 3, 3), (8,)))
    layer = Int8Convolution(weight, bias)
    between = layer.convolve(*round_map(x), (1, 1), torch.float32)
    assert torch.equal(layer(x, (1, 1)), between.bfloat16())


@needs_them
def test_map_of_zeros_gives_the_bias() -> None:
    bias = numbers(8)
    found = Int8Convolution(numbers(8, 8, 3, 3), bias)(torch.zeros(1, 8, 4, 4), (1, 1))
    assert torch.equal(found, bias[None, :, None, None].expand_as(found))


@needs_them
@pytest.mark.parametrize("strip_bytes", [3000, 2**20])
def test_decoded_picture_drifts_little(strip_bytes: int) -> None:
    model, f_hat = tiny_vqvae(channels=16, multipliers=(1, 2, 2)), f_hat_of(16)
    exact = StripDecoder(model, strip_bytes)(f_hat)
    rounded = StripDecoder(model, strip_bytes, convolution=Int8Convolution)(f_hat)
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


@needs_them
def test_quantised_pipeline_decodes_in_int8(tiny_model_folder: str) -> None:
    plain, rounded = (
        StarPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32", quantize=how)
        for how in (None, "int8")
    )
    (image,) = rounded("a red circle")
    f_hat = TokenDecoder(plain.vqvae).f_hat(image.token_maps, plain.schedules[image.recipe["res"]])
    assert torch.equal(to_uint8(StripDecoder(plain.vqvae, convolution=Int8Convolution)(f_hat)[0]), image.pixels)


def test_torch_without_them_decodes_as_before(tiny_model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(int8_convolution.Int8Convolution, "__init__", missing)
    has_int8_convolutions.cache_clear()
    try:
        pipe = StarPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32", quantize="int8")
        (image,) = pipe("a red circle")
    finally:
        has_int8_convolutions.cache_clear()
    f_hat = TokenDecoder(pipe.vqvae).f_hat(image.token_maps, pipe.schedules[image.recipe["res"]])
    assert torch.equal(to_uint8(StripDecoder(pipe.vqvae)(f_hat)[0]), image.pixels)
