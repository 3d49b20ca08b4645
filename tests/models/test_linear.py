"""Linear layers through oneDNN: what `F.linear` and `F.gelu` say, and only where that may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from star_cli.models.linear import linear, plain_linear
from tests.models.builders import laws

HAS_ONEDNN = torch.backends.mkldnn.is_available()


def layer(shape: tuple[int, ...], outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    return x, torch.randn(outputs, shape[-1], generator=generator), torch.randn(outputs, generator=generator)


@laws
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(0),
)
def test_it_is_f_linear_and_a_gelu(shape: list[int], outputs: int, has_bias: bool, gelu: bool, seed: int) -> None:
    x, weight, bias = layer((*shape, 24), outputs, seed % 2**32)
    told = bias if has_bias else None
    expected = F.linear(x.double(), weight.double(), None if told is None else told.double())
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight, told, gelu).double(), expected, rtol=1e-4, atol=1e-4)


def operators(x: torch.Tensor, weight: torch.Tensor) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as run:
        linear(x, weight)
    return {event.name for event in run.events()}


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
def test_where_onednn_is_asked() -> None:
    x, weight, _ = layer((4, 24), 8)
    name = "mkldnn::_linear_pointwise"
    with torch.no_grad():
        assert name in operators(x, weight)
        with plain_linear():
            assert name not in operators(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert name not in operators(x, weight)
        assert name not in operators(x.double(), weight.double())
    assert name not in operators(x, weight)  # it has no backward


def test_gradients_pass() -> None:
    x, weight, bias = layer((4, 24), 8)
    weight.requires_grad_()
    linear(x, weight, bias, gelu=True).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
