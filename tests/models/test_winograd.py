"""Convolutions with fewer multiplications give what torch's convolutions give, up to rounding, whatever the shape."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from star_cli.generation.decoding import TokenDecoder
from star_cli.images import to_uint8
from star_cli.models import winograd
from star_cli.models.convolution import Convolution, PlainConvolution, WidenedConvolution
from star_cli.models.strips import StripDecoder
from star_cli.models.winograd import WideWinogradConvolution, WinogradConvolution, fewest_multiplications, tables
from tests.models.builders import laws, numbers, seeds, tiny_vqvae
from tests.models.test_strips import f_hat_of

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [2, 3])
def test_tables_convolve_a_row(side: int) -> None:
    into, of_weight, back = tables(side)
    assert (into.shape, of_weight.shape, back.shape) == ((side + 3, side + 3), (side + 3, side), (4, side + 3))
    row, weight = numbers(side + 3).double(), numbers(side, seed=1).double()
    expected = torch.stack([(row[first : first + side] * weight).sum() for first in range(4)])
    torch.testing.assert_close(back @ ((into @ row) * (of_weight @ weight)), expected)


@laws
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([2, 3]),
    st.integers(3, 13),
    st.integers(3, 13),
    st.sampled_from([(0, 1), (1, 1), (0, 0), (2, 1)]),
    seeds,
)
def test_it_is_the_convolution(
    channels: int, outputs: int, side: int, height: int, width: int, padding: tuple[int, int], seed: int
) -> None:
    x, weight = numbers(1, channels, height, width, seed=seed), numbers(outputs, channels, side, side, seed=seed + 1)
    bias = numbers(outputs, seed=seed + 2)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    found = WinogradConvolution(weight, bias)(x, padding)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)


def test_rounding_is_a_few_times_that_of_the_plain_convolution() -> None:
    x, weight, bias = numbers(1, 160, 18, 40), numbers(160, 160, 3, 3, seed=1), numbers(160, seed=2)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    plain, ours = F.conv2d(x, weight, bias, padding=1), WinogradConvolution(weight, bias)(x, (1, 1))
    assert (ours - exact).norm() < 4 * (plain - exact).norm()


@pytest.mark.parametrize("worked_bytes", [1, 20_000, 2**30])
def test_rows_worked_on_at_a_time_change_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch, worked_bytes: int
) -> None:
    x, weight, bias = numbers(1, 8, 30, 21), numbers(12, 8, 3, 3, seed=1), numbers(12, seed=2)
    monkeypatch.setattr(winograd, "_WORKED_BYTES", worked_bytes)
    found = WinogradConvolution(weight, bias)(x, (0, 1))
    torch.testing.assert_close(found, F.conv2d(x, weight, bias, padding=(0, 1)), rtol=0, atol=1e-4)


@pytest.fixture
def empty_memory_is_nan() -> Iterator[None]:
    """What `torch.empty` gives holds NaN, not whatever stood there."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.mark.parametrize(("height", "width"), [(40, 26), (9, 8)])
@pytest.mark.parametrize("after_silu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
def test_wide_one_is_made_for_large_strips_alone(height: int, width: int, after_silu: bool, adds: bool) -> None:
    x, weight, bias = channels_last(numbers(1, 6, height, width)), numbers(8, 6, 3, 3, seed=1), numbers(8, seed=2)
    layers = [kind(weight, bias) for kind in (PlainConvolution, WinogradConvolution, WideWinogradConvolution)]
    plain, kept, wide = (layer(x, (1, 1)) for layer in layers)
    assert torch.equal(wide, kept if height * width >= winograd.FEWEST_CELLS else plain)
    assert not torch.equal(kept, plain)
    written = [torch.zeros_like(plain).add_(7) for _ in layers]
    for layer, place in zip(layers, written, strict=True):
        layer.write(x.clone(), (1, 1), place, after_silu=after_silu, adds=adds)
    for place in written[1:]:
        torch.testing.assert_close(place, written[0], rtol=0, atol=1e-4)


@laws
@given(
    st.integers(1, 11),
    st.integers(1, 11),
    st.booleans(),
    st.booleans(),
    st.sampled_from([2, 3]),
    st.sampled_from([1, 2**20]),
    seeds,
)
def test_written_in_place(
    height: int, width: int, after_silu: bool, adds: bool, side: int, worked_bytes: int, seed: int
) -> None:
    """Rows of a map, and no others; what goes in stays as it is, unless a SiLU comes first."""
    x, weight, bias = numbers(1, 3, height, width, seed=seed), numbers(5, 3, side, side, seed=seed + 1), numbers(5)
    expected = F.conv2d(F.silu(x) if after_silu else x, weight, bias, padding=1) + 7 * adds
    widened = WidenedConvolution(PlainConvolution(weight, bias))
    with mock.patch.object(winograd, "_WORKED_BYTES", worked_bytes):
        for layer in (WinogradConvolution(weight, bias), PlainConvolution(weight, bias), widened):
            whole = channels_last(torch.full((1, 5, expected.shape[2] + 2, expected.shape[3]), 7.0))
            given_strip = channels_last(x.clone())
            layer.write(given_strip, (1, 1), whole[:, :, 1:-1], after_silu=after_silu, adds=adds)
            torch.testing.assert_close(whole[:, :, 1:-1], expected, rtol=0, atol=1e-4)
            assert (whole[:, :, [0, -1]] == 7).all()
            assert after_silu or torch.equal(given_strip, x)


def test_place_of_another_layout_is_refused_not_missed() -> None:
    layer = WinogradConvolution(numbers(4, 3, 3, 3), numbers(4))
    with pytest.raises(RuntimeError, match="view"):
        layer.write(numbers(1, 3, 8, 8), (1, 1), torch.zeros(1, 4, 8, 8))


@pytest.mark.usefixtures("empty_memory_is_nan")
@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(5, 6), (8, 8), (12, 12), (7, 4)])
def test_what_lies_beyond_a_tile_does_not_leak(side: int, height: int, width: int) -> None:
    """Tiles at the edge read memory that nobody wrote: numbers there must stay where they are."""
    assert torch.empty(3).isnan().all()
    layer, x = WinogradConvolution(numbers(4, 3, side, side), numbers(4)), numbers(1, 3, height, width)
    place = layer(x, (1, 1))
    assert place.isfinite().all()
    layer.write(x, (1, 1), place, after_silu=True, adds=True)
    assert place.isfinite().all()


def test_neither_weight_nor_input_is_changed_and_bits_repeat() -> None:
    x, weight, bias = numbers(1, 8, 9, 9), numbers(8, 8, 3, 3, seed=1), numbers(8, seed=2)
    before = [each.clone() for each in (x, weight, bias)]
    layer = WinogradConvolution(weight, bias)
    assert torch.equal(layer(x, (1, 1)), layer(x, (1, 1)))
    assert all(torch.equal(now, then) for now, then in zip((x, weight, bias), before, strict=True))


@pytest.mark.parametrize(
    ("side", "rows", "expected"), [(3, 25, 24), (3, 24, 24), (3, 3, 3), (2, 12, 11), (2, 11, 11), (2, 2, 2)]
)
def test_strips_fill_whole_tiles(side: int, rows: int, expected: int) -> None:
    assert WinogradConvolution(numbers(4, 4, side, side), numbers(4)).fitting(rows) == expected


@needs_mkl
@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((160, 160, 3, 3), torch.float32, WinogradConvolution),
        ((640, 160, 2, 2), torch.float32, WinogradConvolution),
        ((96, 160, 3, 3), torch.float32, PlainConvolution),
        ((160, 96, 3, 3), torch.float32, PlainConvolution),
        ((640, 640, 3, 3), torch.float32, WideWinogradConvolution),
        ((2560, 640, 2, 2), torch.float32, PlainConvolution),
        ((160, 160, 3, 3), torch.bfloat16, PlainConvolution),
    ],
)
def test_taken_by_shape_and_dtype(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: torch.dtype, kind: type[Convolution]
) -> None:
    monkeypatch.setattr(winograd, "has_bfloat16", lambda: True)
    convolution = fewest_multiplications(torch.zeros(shape, dtype=dtype), torch.zeros(shape[0], dtype=dtype))
    assert type(convolution) is kind


@pytest.mark.parametrize("channels", [4, 128])
def test_cpu_without_bfloat16_convolves_in_float32(monkeypatch: pytest.MonkeyPatch, channels: int) -> None:
    monkeypatch.setattr(winograd, "has_bfloat16", lambda: False)
    x, weight = numbers(1, channels, 9, 8).bfloat16(), numbers(channels, channels, 3, 3, seed=1).bfloat16()
    bias = numbers(channels, seed=2).bfloat16()
    found = fewest_multiplications(weight, bias)(x, (1, 1))
    expected = fewest_multiplications(weight.float(), bias.float())(x.float(), (1, 1))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("strip_bytes", [20_000, 2**20])
def test_decoded_picture_is_the_same_but_for_rounding(strip_bytes: int) -> None:
    model, f_hat = tiny_vqvae(channels=16, multipliers=(1, 2, 2)), f_hat_of(8)
    exact = StripDecoder(model, strip_bytes)(f_hat)
    ours = StripDecoder(model, strip_bytes, convolution=WinogradConvolution)(f_hat)
    torch.testing.assert_close(ours, exact, rtol=0, atol=5e-5)
    assert (to_uint8(ours[0]).int() - to_uint8(exact[0]).int()).abs().max() <= 1


@needs_mkl
def test_drawing_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "NARROWEST", 16)
    model, f_hat = tiny_vqvae(channels=16, multipliers=(1, 2)), f_hat_of(8)
    taken = TokenDecoder(model).pixels(f_hat)
    assert torch.equal(taken, StripDecoder(model, convolution=fewest_multiplications)(f_hat)[0])
    assert not torch.equal(taken, StripDecoder(model)(f_hat)[0])
