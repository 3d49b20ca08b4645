"""Linear layers through oneDNN: what `F.linear` and `F.gelu` say, and only where that may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from star_cli.models import linear as linear_module
from star_cli.models.linear import FEW_TOKENS, linear, plain_linear
from tests.models.builders import laws

HAS_ONEDNN = torch.backends.mkldnn.is_available()
LIBRARIES = {"mkldnn::_linear_pointwise", "aten::linear"}


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


@pytest.fixture
def lacks_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.parametrize(
    ("capability", "tokens", "is_asked"),
    [("AVX512", FEW_TOKENS + 1, True), ("AVX2", FEW_TOKENS, True), ("AVX2", FEW_TOKENS + 1, False)],
)
def test_onednn_is_asked_by_tokens_without_avx512(
    monkeypatch: pytest.MonkeyPatch, capability: str, tokens: int, is_asked: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    x, weight, bias = layer((2, tokens, 24), 8)
    with torch.no_grad():
        assert ("mkldnn::_linear_pointwise" in operators(x, weight)) == is_asked
        found = linear(x, weight, bias, gelu=True)
    torch.testing.assert_close(found, F.gelu(F.linear(x, weight, bias), approximate="tanh"), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.usefixtures("lacks_avx512")
@pytest.mark.parametrize("tokens", [1, 25, FEW_TOKENS, FEW_TOKENS + 1])
def test_library_does_not_go_by_the_batch(tokens: int) -> None:
    x, weight, _ = layer((8, tokens, 64), 256)
    with torch.no_grad():
        assert operators(x, weight) & LIBRARIES == operators(x[:2], weight) & LIBRARIES


@pytest.mark.usefixtures("lacks_avx512")
@pytest.mark.parametrize("numbers_at_once", [3, 20, 2**17])
def test_bias_comes_with_the_gelu_piece_by_piece(monkeypatch: pytest.MonkeyPatch, numbers_at_once: int) -> None:
    monkeypatch.setattr(linear_module, "_GELU_NUMBERS", numbers_at_once)
    x, weight, bias = layer((2, FEW_TOKENS + 1, 24), 8)
    given_bias = bias.clone()
    with torch.no_grad():
        found = linear(x, weight, bias, gelu=True)
    torch.testing.assert_close(found, F.gelu(F.linear(x, weight, bias), approximate="tanh"), rtol=1e-5, atol=1e-5)
    assert torch.equal(bias, given_bias)


@pytest.mark.usefixtures("lacks_avx512")
def test_gelu_in_place_is_as_exact_as_torch_s() -> None:
    x = torch.cat([torch.linspace(-30, 30, 200_001), torch.tensor([0.0, -0.0, 1e-20, 1e20, -1e20])])
    exact = F.gelu(x.double(), approximate="tanh")
    with torch.no_grad():
        found = linear(x[:, None], torch.eye(1), gelu=True)[:, 0]
    error, usual = (found - exact).abs(), (F.gelu(x, approximate="tanh") - exact).abs()
    assert error.max() <= 2 * usual.max()
    assert found.isfinite().all()


def test_what_goes_in_stays_as_it_is() -> None:
    x, weight, bias = layer((300, 24), 24)
    before = [each.clone() for each in (x, weight, bias)]
    with torch.no_grad():
        linear(x, weight, bias, gelu=True)
    assert all(torch.equal(now, then) for now, then in zip((x, weight, bias), before, strict=True))


@pytest.mark.parametrize("gelu", [False, True])
def test_cpu_without_bfloat16_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch, gelu: bool) -> None:
    monkeypatch.setattr(linear_module, "has_bfloat16", lambda: False)
    x, weight, bias = (each.bfloat16() for each in layer((40, 24), 8))
    with torch.no_grad():
        found = linear(x, weight, bias, gelu)
        expected = linear(x.float(), weight.float(), bias.float(), gelu)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


def test_gradients_pass() -> None:
    x, weight, bias = layer((4, 24), 8)
    weight.requires_grad_()
    linear(x, weight, bias, gelu=True).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().sum() > 0
