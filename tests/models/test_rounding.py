"""Weights in one byte on a GPU: torchao's arithmetic, which a CPU does, too, and what is refused where."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import OptionError
from star_cli.hardware import choose_quantize
from star_cli.models import torchao_weights
from star_cli.models.rounding import check_rounding, product_dtype, rounded_layers
from star_cli.models.torchao_weights import check_torchao, round_by_torchao
from star_cli.pipeline import StarPipeline
from tests.models.builders import numbers

CUDA = torch.device("cuda")
LARGEST_FP8 = torch.finfo(torch.float8_e4m3fn).max
both = pytest.mark.parametrize("name", ["int8", "fp8"])


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchao, which asks for a GPU before it makes floats of 8 bits, though torch multiplies them on a CPU."""
    pytest.importorskip("torchao")
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)


def layer_of(rounding_name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[nn.Linear, Tensor]:
    """A rounded layer, and its weight before."""
    layer = nn.Linear(96, 64, dtype=dtype)
    layer.weight.data = numbers(64, 96, seed=1).to(dtype)
    weight = layer.weight.detach().clone()
    round_by_torchao(layer, rounding_name)
    return layer, weight


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_the_product_with_the_rounded_weight(dtype: torch.dtype) -> None:
    x, bias = numbers(2, 40, 96).to(dtype), numbers(64, seed=2).to(dtype)
    layer, weight = layer_of("int8", dtype)
    steps = weight.abs().amax(1, keepdim=True) / 127.5
    rounded: Tensor = layer.weight.dequantize()  # type: ignore[operator]
    assert ((rounded - weight).abs() <= steps * {torch.float32: 0.51, torch.bfloat16: 1.01}[dtype]).all()
    found = F.linear(x, layer.weight, bias)
    assert (found.dtype, layer.weight.dtype) == (dtype, dtype)
    expected = F.linear(x.double(), rounded.double(), bias.double())
    assert (found.double() - expected).norm() < {torch.float32: 1e-6, torch.bfloat16: 6e-3}[dtype] * expected.norm()
    assert (expected - F.linear(x.double(), weight.double(), bias.double())).norm() < 0.01 * expected.norm()


@pytest.mark.usefixtures("torchao")
def test_fp8_is_the_product_of_both_rounded() -> None:
    x, bias = numbers(2, 40, 96).bfloat16(), numbers(64, seed=2).bfloat16()
    layer, weight = layer_of("fp8")
    expected = rounded_to_fp8(x) @ rounded_to_fp8(weight).T + bias.double()
    found = F.linear(x, layer.weight, bias)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() < 5e-3 * expected.norm()
    exact = x.double() @ weight.double().T + bias.double()
    assert 0.01 < (expected - exact).norm() / exact.norm() < 0.06


def rounded_to_fp8(values: Tensor) -> Tensor:
    scale = (values.abs().amax(-1, keepdim=True) / LARGEST_FP8).double()  # rounded to bfloat16
    return (values.double() / scale).to(torch.float8_e4m3fn).double() * scale


@pytest.mark.usefixtures("torchao")
@both
def test_token_is_the_same_alone_and_among_others(name: str) -> None:
    x, (layer, _) = numbers(2, 70, 96).bfloat16(), layer_of(name)
    assert torch.equal(F.linear(x, layer.weight)[1, 5], F.linear(x[1, 5][None], layer.weight)[0])


@pytest.mark.usefixtures("torchao")
def test_shape_that_fp8_does_not_take_is_refused() -> None:
    layer = nn.Linear(20, 32, dtype=torch.bfloat16)
    with pytest.raises(OptionError, match=r"fp8 cannot multiply weights of shape \(32, 20\)"):
        round_by_torchao(layer, "fp8")


@pytest.mark.usefixtures("torchao")
@both
def test_model_draws_with_such_weights_in_its_blocks_alone(tiny_model_folder: str, name: str) -> None:
    pipe = StarPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="bfloat16")
    usual = pipe("a red circle", seed=3)[0]
    kinds = {key: type(tensor) for key, tensor in pipe.transformer.state_dict().items()}
    for layer in rounded_layers(pipe.transformer):
        round_by_torchao(layer, name)
    changed = {key for key, tensor in pipe.transformer.state_dict().items() if type(tensor) is not kinds[key]}
    assert len(changed) == 6 * pipe.transformer.config.depth
    assert all(key.startswith("blocks.") and key.endswith(".weight") for key in changed)
    (drawn,) = pipe("a red circle", seed=3)
    assert [each.shape for each in drawn.token_maps] == [each.shape for each in usual.token_maps]
    assert torch.equal(drawn.pixels, pipe("a red circle", seed=3)[0].pixels)


def test_gpu_asks_for_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(OptionError, match="needs torchao") as told:
        choose_quantize("int8", CUDA, torch.bfloat16)
    assert "star-cli[gpu]" in str(told.value.hint)


@pytest.mark.parametrize(
    ("capability", "dtype", "words"),
    [((8, 6), torch.bfloat16, "does not multiply 8-bit floats"), ((9, 0), torch.float32, "fp8 goes with bfloat16")],
)
def test_fp8_is_refused_where_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, words: str
) -> None:
    monkeypatch.setattr(torchao_weights, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(OptionError, match=words):
        check_torchao("fp8", CUDA, dtype)
    check_torchao("int8", CUDA, dtype)


def test_float16_would_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchao_weights, "find_spec", lambda name: object())
    with pytest.raises(OptionError, match="int8 goes with float32 and bfloat16 alone"):
        check_torchao("int8", CUDA, torch.float16)


def test_another_torchao_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", ModuleType("torchao.quantization"))
    with pytest.raises(OptionError, match=r"needs torchao, 0\.18 or newer"):
        round_by_torchao(nn.Linear(32, 32), "int8")


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [("int8", "cpu", "int8"), ("int8", "cuda", None), ("fp8", "cuda", "fp8"), (None, "cuda", None)],
)
def test_weights_alone_do_not_hasten_products(name: str | None, device: str, expected: str | None) -> None:
    assert product_dtype(name, torch.device(device)) == expected


def test_fp8_is_there_on_a_gpu_only() -> None:
    with pytest.raises(OptionError, match="on an NVIDIA GPU only, not on cpu"):
        check_rounding("fp8", torch.device("cpu"), torch.bfloat16)


@pytest.mark.gpu
@both
def test_model_is_rounded_on_a_gpu(tiny_model_folder: str, name: str) -> None:
    pytest.importorskip("torchao")
    if not torch.cuda.is_available() or (name == "fp8" and torch.cuda.get_device_capability() < (8, 9)):
        pytest.skip("needs a GPU that multiplies such numbers")
    pipe = StarPipeline.from_pretrained(tiny_model_folder, device="cuda", dtype="bfloat16", quantize=name)
    assert all(type(layer.weight) is not nn.Parameter for layer in rounded_layers(pipe.transformer))
    (image,) = pipe("a red circle", seed=3)
    assert image.recipe["quantize"] == name
