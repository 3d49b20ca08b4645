"""Blocks in int8: near float32, exact in their sums, the same for a token whatever stands beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from star_cli.errors import OptionError
from star_cli.models import int8_products
from star_cli.models.int8 import Int8Weight, check_int8
from star_cli.models.int8_products import NARROW, ByteProduct, Int8Product, NarrowProduct, round_rows
from star_cli.models.rounding import round_blocks
from star_cli.pipeline import StarPipeline
from tests.models.builders import numbers


def test_rounded_rows_are_half_a_step_off_at_most() -> None:
    rows = numbers(5, 33) * torch.tensor([1e-6, 1e-2, 1.0, 50.0, 0.0])[:, None]
    whole, steps = round_rows(rows)
    assert whole.dtype == torch.int8
    assert ((whole * steps - rows).abs() <= 0.501 * steps).all()


needs_fbgemm = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no FBGEMM"
)
needs_exact_bytes = pytest.mark.skipif(
    not int8_products._adds_bytes_exactly(), reason="this processor adds up products of bytes in 16 bits"
)
both_products = pytest.mark.parametrize(
    ("product", "largest"),
    [
        pytest.param(ByteProduct, 127, marks=needs_exact_bytes),
        pytest.param(NarrowProduct, NARROW, marks=needs_fbgemm),
    ],
)


def weight_of(numbers: torch.Tensor, product: Callable[[torch.Tensor], Int8Product]) -> Int8Weight:
    weight = Int8Weight.of(numbers)
    weight.product = product(numbers.float())
    return weight


@both_products
@pytest.mark.parametrize("rows", [1, 2, 40, 3000])
def test_product_is_that_of_the_rounded_numbers(
    product: Callable[[torch.Tensor], Int8Product], largest: int, rows: int
) -> None:
    x, weight, bias = numbers(rows, 96), numbers(64, 96, seed=1), numbers(64, seed=2)
    steps = x.abs().amax(1, keepdim=True) / largest
    rounded, scales = round_rows(weight)
    expected = ((x / steps).round().double() @ rounded.double().t()) * steps * scales.t() + bias
    found = F.linear(x, weight_of(weight, product), bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (found - F.linear(x, weight, bias)).norm() < 0.02 * found.norm()


@both_products
def test_largest_numbers_overflow_nowhere(product: Callable[[torch.Tensor], Int8Product], largest: int) -> None:
    signs = numbers(40, 96).sign()
    x, weight = signs * largest, numbers(64, 96, seed=1).sign() * 127
    x[:3], weight[:3] = float(largest), torch.tensor([-127.0, 127.0, 127.0])[:, None]
    assert torch.equal(F.linear(x, weight_of(weight, product)).double(), x.double() @ weight.double().t())


@both_products
def test_token_is_the_same_alone_and_among_others(product: Callable[[torch.Tensor], Int8Product], largest: int) -> None:
    x, weight = numbers(2, 700, 48), weight_of(numbers(32, 48, seed=1), product)
    assert torch.equal(F.linear(x, weight)[1, 5], F.linear(x[1, 5][None], weight)[0])


@needs_fbgemm
def test_packing_leaves_torch_and_warnings_as_they_were() -> None:
    before = torch.backends.quantized.engine, list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda seed: NarrowProduct(numbers(8, 16, seed=seed)), range(40)))
    assert len(made) == 40
    assert (torch.backends.quantized.engine, list(warnings.filters)) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_takes_a_byte_and_says_what_it_was(dtype: torch.dtype) -> None:
    layer = nn.Linear(48, 32, dtype=dtype)
    weight = Int8Weight.of(layer.weight)
    assert (weight.dtype, weight.shape, weight.nbytes) == (dtype, (32, 48), 32 * 48)


def test_bfloat16_goes_in_and_comes_out_and_float32_is_between() -> None:
    x, weight, bias = (numbers(*shape, seed=shape[0]).bfloat16() for shape in ((40, 96), (64, 96), (64,)))
    found = F.linear(x, Int8Weight.of(weight), bias)
    between = F.linear(x.float(), Int8Weight.of(weight.float()), bias.float())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, between.bfloat16())


def test_blocks_drift_little_and_the_head_stays(tiny_pipeline: StarPipeline, own_rounded: StarPipeline) -> None:
    schedule = tiny_pipeline.schedules[32]
    condition = tiny_pipeline.text_encoder.encode(["a red circle"])  # type: ignore[union-attr]
    codes = numbers(1, schedule.length - 1, tiny_pipeline.transformer.config.code_dim)
    logits = [
        pipe.transformer(pipe.transformer.prompt(condition), codes, schedule) for pipe in (tiny_pipeline, own_rounded)
    ]
    drift = (logits[1] - logits[0]).norm() / logits[0].norm()
    assert 0 < drift < 0.05
    head = own_rounded.transformer.head.weight
    assert not isinstance(head, Int8Weight)
    assert torch.equal(head, tiny_pipeline.transformer.head.weight)


def test_class_model_is_rounded_too(tiny_class_folder: str) -> None:
    pipe = StarPipeline.from_pretrained(tiny_class_folder, device="cpu", quantize="int8")
    (image,) = pipe(classes=3)
    assert image.recipe["quantize"] == "int8"


@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", None), ("float32", "int8"), ("bfloat16", "int8")])
def test_picture_is_the_same_in_any_batch_in_every_precision(
    tiny_model_folder: str, dtype: str, quantize: str | None
) -> None:
    pipe = StarPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=dtype, quantize=quantize)
    steps: list[tuple[int, int]] = []
    together = pipe(["a red circle", "a star"], num=3, on_scale=lambda *step: steps.append(step))
    alone = [image for text in ("a red circle", "a star") for seed in range(3) for image in pipe(text, seed=seed)]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert one.recipe == other.recipe
    assert steps == sorted(set(steps))
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [("meta", torch.float32, "on a CPU or an NVIDIA GPU"), ("cpu", torch.float16, "with float32 and bfloat16 alone")],
)
def test_int8_is_refused_where_it_is_not_there(device: str, dtype: torch.dtype, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check_int8(torch.device(device), dtype)


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """What the processor can is asked once a process: forget it before the test and after."""
    questions = (
        int8_products.has_int8_products,
        int8_products._is_narrow,
        int8_products._adds_bytes_exactly,
    )
    for question in questions:
        question.cache_clear()
    yield
    for question in questions:
        question.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_processor_that_overflows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: torch.full((8, 8), -(2**15), dtype=torch.int32))
    monkeypatch.setattr(int8_products, "_ENGINE", "none")
    with pytest.raises(OptionError, match="exactly"):
        check_int8(torch.device("cpu"), torch.float32)


@needs_fbgemm
@pytest.mark.usefixtures("asked_anew")
def test_processor_that_overflows_keeps_seven_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: torch.full((8, 8), -(2**15), dtype=torch.int32))
    check_int8(torch.device("cpu"), torch.float32)
    assert isinstance(Int8Weight.of(numbers(8, 16)).product, NarrowProduct)


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    ("capability", "product"), [pytest.param("AVX2", NarrowProduct, marks=needs_fbgemm), ("AVX512", ByteProduct)]
)
def test_product_goes_by_the_processor(
    monkeypatch: pytest.MonkeyPatch, capability: str, product: type[Int8Product]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(int8_products, "_adds_bytes_exactly", lambda: True)
    assert isinstance(Int8Weight.of(numbers(8, 16)).product, product)


@needs_fbgemm
@pytest.mark.usefixtures("asked_anew")
def test_torch_without_such_tensors_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*given: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch, "_make_per_channel_quantized_tensor", gone)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(int8_products, "_adds_bytes_exactly", lambda: True)
    assert isinstance(Int8Weight.of(numbers(8, 16)).product, ByteProduct)


def test_unknown_rounding_is_refused(tiny_model_folder: str) -> None:
    with pytest.raises(OptionError, match="--quantize must be none, int8 or fp8, not int4"):
        StarPipeline.from_pretrained(tiny_model_folder, quantize="int4")


@pytest.fixture
def own_rounded(tiny_model_folder: str) -> StarPipeline:
    pipe = StarPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype="float32")
    round_blocks(pipe.transformer, "int8")
    return pipe
