"""What a drawing costs, counted, not timed: a pinned figure that grows is a slower engine.

The figures are those of `exact` on a tiny model; a change that lowers one lowers it here, too.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.models.schedule import ScaleSchedule
from tests.models.builders import text, tiny_quantizer, tiny_transformer

MODEL, QUANTIZER = tiny_transformer(), tiny_quantizer()
SCHEDULE = ScaleSchedule((1, 2, 3, 4, 6, 8))
OPTIONS = SamplingOptions(guidance=2.0, top_k=9, top_p=0.9, stable=False)
TOLD = (text(1), text(1, 9))


class Most(NamedTuple):
    operators: int
    bytes: int


@pytest.fixture(params=[("AVX512", Most(116, 2_400_000)), ("AVX2", Most(128, 2_550_000))], ids=lambda param: param[0])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Most:
    """Pinned figures of a processor whose linear layers bring a GELU along, and of one on which it stands alone."""
    capability, pinned = request.param
    if capability == "AVX512" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    return pinned


class _Counting(TorchDispatchMode):
    """Counts operators that give new numbers, by name: no views, no conversions to what a tensor is already."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        first = args[0] if args else None
        is_view = isinstance(result, Tensor) and isinstance(first, Tensor) and _shares_memory(result, first)
        if not is_view or func._schema.is_mutable:
            self.counts[func.overloadpacket.__name__] += 1
        return result


def _shares_memory(result: Tensor, first: Tensor) -> bool:
    return result.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()


@contextmanager
def counted() -> Iterator[Counter[str]]:
    with _Counting() as mode:
        yield mode.counts


def draw_one(seed: int = 0, options: SamplingOptions = OPTIONS, **rest: Any) -> None:
    draw(MODEL, QUANTIZER, *TOLD, SCHEDULE, options, random_generators([seed]), **rest)


def test_operators_of_a_scale(most: Most) -> None:
    draw_one()  # tables are made once
    with counted() as counts:
        after: list[int] = []
        draw_one(on_scale=lambda _done, _total: after.append(counts.total()))
    each = [now - before for before, now in pairwise(after)]
    assert len(set(each[:-1])) == 1  # a larger scale costs no more operators
    assert each[0] <= most.operators
    # the last map is not enlarged; each block joins its keys and values to the kept ones, in memory taken once
    assert each[-1] <= each[0] - 1 + 2 * MODEL.config.depth + 2


def test_what_a_drawing_never_does() -> None:
    draw_one()
    with counted() as counts:
        draw_one()
    scales = len(SCHEDULE)
    assert (
        counts["is_nonzero"] + counts["item"] + counts["_local_scalar_dense"] <= scales
    )  # one question a scale: do equal logits stand at an edge?
    assert counts["sort"] == 0
    assert counts["repeat_interleave"] + counts["polar"] + counts["arange"] == 0  # tables are there
    # of each block: queries, keys, values; the way out; the same of the text; two of the feed-forward network
    of_blocks = MODEL.config.depth * scales * 6
    assert (
        counts["linear"] + counts["_linear_pointwise"] == of_blocks + MODEL.config.depth + 1 + (scales - 1) + scales
    )  # text, start, codes, head


def test_bytes_of_an_image(most: Most) -> None:
    draw_one()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        draw_one()
    taken = sum(event.self_cpu_memory_usage for event in run.events() if event.self_cpu_memory_usage > 0)
    assert 0 < taken <= most.bytes


def live_tensors() -> tuple[int, int]:
    gc.collect()
    held = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    return len(held), sum(tensor.untyped_storage().nbytes() for tensor in held)


@pytest.mark.parametrize("speed", ["exact", "turbo"])
def test_twenty_images_leave_nothing_behind(speed: str) -> None:
    options = SamplingOptions(**(OPTIONS.to_dict() | {"speed": speed}))
    draw_one(options=options)
    before = live_tensors()
    for seed in range(20):
        draw_one(seed, options)
    assert live_tensors() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_cpu_never_waits_for_the_gpu() -> None:
    model, quantizer = tiny_transformer().cuda(), tiny_quantizer().cuda()
    told = (text(2).to("cuda"), text(2, 9).to("cuda"))
    given = (SCHEDULE, OPTIONS, random_generators([0, 1]))
    draw(model, quantizer, *told, *given)  # tables are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        draw(model, quantizer, *told, *given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
