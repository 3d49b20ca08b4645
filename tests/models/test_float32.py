"""Float32 that is float32, whatever a program told torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from star_cli.jobs import ImageJob
from star_cli.models.float32 import exact_float32
from star_cli.pipeline import StarPipeline

CONVOLUTIONS, PRODUCTS = torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul


@pytest.fixture
def _coarse() -> Iterator[None]:
    """What `torch.set_float32_matmul_precision("medium")` does to products on a CPU, and the same of convolutions."""
    before = precisions()
    _set("bf16", "bf16")
    try:
        yield
    finally:
        _set(*before)


def _set(convolutions: str, products: str) -> None:
    CONVOLUTIONS.fp32_precision, PRODUCTS.fp32_precision = convolutions, products


def precisions() -> tuple[str, str]:
    return CONVOLUTIONS.fp32_precision, PRODUCTS.fp32_precision


@pytest.mark.usefixtures("_coarse")
def test_a_cpu_computes_in_float32_inside_and_as_told_outside() -> None:
    x, weight = torch.randn(512, 512), torch.randn(512, 512)
    with exact_float32("cpu"):
        assert precisions() == ("ieee", "ieee")
        inside = x @ weight
    assert precisions() == ("bf16", "bf16")
    torch.testing.assert_close(inside.double(), x.double() @ weight.double(), rtol=0, atol=1e-3)  # bfloat16: 0.3


@pytest.mark.usefixtures("_coarse")
def test_whoever_leaves_last_puts_back_what_was_there() -> None:
    first, second = ExitStack(), ExitStack()  # of two threads: neither lies inside the other
    first.enter_context(exact_float32("cpu"))
    second.enter_context(exact_float32("cpu"))
    first.close()
    assert precisions() == ("ieee", "ieee")
    second.close()
    assert precisions() == ("bf16", "bf16")


@pytest.mark.usefixtures("_coarse")
def test_words_are_read_in_float32(tiny_pipeline: StarPipeline) -> None:
    seen = []
    assert tiny_pipeline.text_encoder is not None
    hook = tiny_pipeline.text_encoder.tower.ln_final.register_forward_hook(lambda *_: seen.append(precisions()))
    tiny_pipeline.tell([ImageJob("a red circle", 0, "a word that no other test has read")])
    hook.remove()
    assert seen == [("ieee", "ieee")] * 2
