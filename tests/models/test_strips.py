"""Decoding by strips gives what the whole decoder gives, however the strips fall."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from star_cli.errors import ShapeError
from star_cli.images import to_uint8
from star_cli.models.strips import StripDecoder, _Map, fold_doubling
from star_cli.models.vqvae import MultiScaleVQVAE
from tests.models.builders import CODE_DIM, laws, seeds, tiny_vqvae


def f_hat_of(side: int, seed: int = 0) -> Tensor:
    return torch.randn(1, CODE_DIM, side, side, generator=torch.Generator().manual_seed(seed))


@laws
@given(
    st.integers(2, 9),
    st.sampled_from([1, 500, 3000, 2**20]),
    st.sampled_from([(1, 2), (2, 1, 1), (1,), (1, 1, 2, 2, 4)]),
    st.sampled_from([1, 2, 4]),
    seeds,
)
def test_strips_of_any_height_give_the_whole_picture(
    side: int, strip_bytes: int, multipliers: tuple[int, ...], patch: int, seed: int
) -> None:
    model = tiny_vqvae(channels=4, multipliers=multipliers, patch=patch, groups=2)
    f_hat = f_hat_of(side, seed)
    with torch.no_grad():
        whole = model.decode(f_hat)
        strips = StripDecoder(model, strip_bytes)(f_hat)
    torch.testing.assert_close(strips, whole, rtol=0, atol=2e-5)
    assert (to_uint8(strips[0]).int() - to_uint8(whole[0]).int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_the_whole_decoder(dtype: torch.dtype) -> None:
    model, f_hat = tiny_vqvae(channels=16, multipliers=(1, 2, 2)), f_hat_of(16)
    with torch.no_grad():
        exact = model.decode(f_hat)
        model.set_compute_dtype(dtype)
        whole, strips = model.decode(f_hat), StripDecoder(model, 5000)(f_hat)
    assert strips.dtype == torch.float32
    assert (strips - exact).abs().mean() < 1.2 * (whole - exact).abs().mean()


@pytest.mark.parametrize("side", [255, 256])
def test_statistics_of_a_large_flat_map_are_exact(side: int) -> None:
    """Sums that go cell by cell lose four digits on such a map."""
    values = torch.full((1, 8, side, side), 3.3)
    values[:, :, 100:120, 100:120] = 4
    layer = _Map(values.contiguous(memory_format=torch.channels_last), strip_bytes=1)
    for top in range(0, side, 50):
        layer.count(top, min(top + 50, side))
    norm = nn.GroupNorm(2, 8)
    mean, variance = layer._moments(norm)
    exact = torch.var_mean(values.double().unflatten(1, (2, 4)), (0, 2, 3, 4), correction=0)
    for found, expected in zip((variance, mean), exact, strict=True):
        torch.testing.assert_close(found.double(), expected.repeat_interleave(4), rtol=1e-5, atol=0)


def test_the_same_call_gives_the_same_bits() -> None:
    model, f_hat = tiny_vqvae(), f_hat_of(8)
    decoder = StripDecoder(model, 2000)
    assert torch.equal(decoder(f_hat), decoder(f_hat))
    assert torch.equal(decoder(f_hat), StripDecoder(copy.deepcopy(model), 2000)(f_hat))


def test_neither_the_model_nor_its_input_is_changed() -> None:
    model, f_hat = tiny_vqvae(), f_hat_of(4)
    before, given_f_hat = {name: value.clone() for name, value in model.state_dict().items()}, f_hat.clone()
    StripDecoder(model)(f_hat)
    assert torch.equal(f_hat, given_f_hat)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_several_pictures_at_once_are_refused() -> None:
    with pytest.raises(ShapeError, match="one at a time, not 2"):
        StripDecoder(tiny_vqvae())(torch.zeros(2, CODE_DIM, 4, 4))


@laws
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), seeds)
def test_folded_kernel_sees_the_doubled_map(entering: int, leaving: int, side: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(1, entering, side, side + 1, generator=draw, dtype=torch.float32)
    weight = torch.randn(leaving, entering, 3, 3, generator=draw)
    doubled = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    quarters = F.conv2d(x, fold_doubling(weight), padding=1).unflatten(1, (2, 2, leaving))
    for down in (0, 1):
        for right in (0, 1):
            ours = quarters[:, down, right, :, down : down + side, right : right + side + 1]
            torch.testing.assert_close(ours, doubled[:, :, down::2, right::2], rtol=0, atol=2e-5)


def test_memory_is_that_of_two_full_activations() -> None:
    model = tiny_vqvae(channels=16, multipliers=(1, 1), blocks=1)
    side, strip_bytes = 48, 2**14
    full = 16 * (2 * side) ** 2 * 4
    assert _peak_bytes(model, side, strip_bytes) < 2.5 * full < _peak_bytes(model, side, 2**30)


def _peak_bytes(model: MultiScaleVQVAE, side: int, strip_bytes: int) -> int:
    """Most bytes that the allocator had handed out at once, as its own profile says."""
    decoder, f_hat = StripDecoder(model, strip_bytes), f_hat_of(side)
    with torch.profiler.profile(profile_memory=True) as profile:
        decoder(f_hat)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
