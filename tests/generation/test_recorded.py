"""Recorded blocks draw what running ones draw. On a CPU a recording is the call, done again in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from threading import Thread
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters

from star_cli.errors import OptionError, StarError
from star_cli.generation.drawn import Drawn
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.recorded import MOST, CudaGraphs, Play, Recordings
from star_cli.generation.sampler import draw
from star_cli.hardware import choose_graphs
from star_cli.models.rounding import rounded_layers
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.torchao_weights import round_by_torchao
from star_cli.models.transformer import StarTransformer
from tests.models.builders import (
    class_changes,
    conditions,
    laws,
    placed_schedules,
    seeds,
    text,
    tiny_quantizer,
    tiny_transformer,
    transformer_changes,
)

QUANTIZER = tiny_quantizer()
SCHEDULE = ScaleSchedule((1, 2, 3, 4))
OPTIONS = SamplingOptions(guidance=2.0, top_k=9, top_p=0.9, stable=False)


def again(run: Callable[[], Tensor]) -> Play:
    """Like a graph: the result is in one place, which is written anew each time."""
    result = run().clone()
    return lambda: result.copy_(run())


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Linear layers as they are there, and nothing compiled before or after."""
    monkeypatch.setattr("star_cli.models.linear._is_free", lambda *given: False)
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def drawn(
    model: StarTransformer,
    recordings: Recordings | None,
    seed: int,
    images: int = 2,
    schedule: ScaleSchedule = SCHEDULE,
    options: SamplingOptions = OPTIONS,
) -> Drawn:
    told = conditions(model.config, images, seed)
    numbers = random_generators(range(seed, seed + images))
    return draw(model, QUANTIZER, *told, schedule, options, numbers, recordings=recordings)


def assert_same(first: Drawn, second: Drawn) -> None:
    assert torch.equal(first.f_hat, second.f_hat)
    assert all(torch.equal(one, other) for one, other in zip(first.token_maps, second.token_maps, strict=True))


@laws
@given(
    st.one_of(transformer_changes(), class_changes()),
    placed_schedules,
    st.sampled_from([0.0, 2.0]),
    st.integers(1, 3),
    seeds,
)
def test_tokens_are_those_of_running_blocks(
    changes: dict[str, object], schedule: ScaleSchedule, guidance: float, images: int, seed: int
) -> None:
    model = tiny_transformer(**changes)
    recordings = Recordings(model, lambda: again)
    options = SamplingOptions(**(OPTIONS.to_dict() | {"guidance": guidance}))
    for number in range(seed, seed + 4):  # runs, is recorded, is played, is played
        given = (number, images, schedule, options)
        assert_same(drawn(model, recordings, *given), drawn(model, None, *given))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"modulation": "text", "cross_attention": False},
        {"conditioning": "class", "cross_attention": False, "modulation": "class", "classes": 5},
    ],
)
def test_tokens_are_those_of_compiled_blocks(changes: dict[str, object]) -> None:
    model = tiny_transformer(**changes)
    recordings = Recordings(model, lambda: again, "eager")  # traced, then run as it is: that asks for no C++ compiler
    for seed in range(4):
        assert_same(drawn(model, recordings, seed), drawn(model, None, seed))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_blocks_are_compiled_once_for_all_and_whole() -> None:
    model, graphs = tiny_transformer(depth=4), 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    recordings = Recordings(model, lambda: again, counting)
    for seed in range(3):
        drawn(model, recordings, seed)
    assert 0 < graphs <= 2 * len(SCHEDULE)
    assert not counters["graph_break"]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_rounded_blocks_are_compiled_too() -> None:
    pytest.importorskip("torchao")
    model = tiny_transformer()
    model.set_compute_dtype(torch.bfloat16)
    for layer in rounded_layers(model):
        round_by_torchao(layer, "int8")
    recordings = Recordings(model, lambda: again, "eager")
    for seed in range(3):
        assert_same(drawn(model, recordings, seed), drawn(model, None, seed))
    assert not counters["graph_break"]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_all_passes_run_compiled_where_one_could_be_recorded() -> None:
    model = tiny_transformer()
    recordings = Recordings(model, lambda: again, "eager")
    drawn(model, recordings, 0)
    first = counters["stats"]["unique_graphs"]
    assert first > 0
    options = SamplingOptions(**(OPTIONS.to_dict() | {"speed": "fast"}))
    drawn(model, recordings, 0, images=3, options=options)
    assert counters["stats"]["unique_graphs"] == first


@pytest.mark.usefixtures("as_on_a_gpu")
def test_what_cannot_be_compiled_is_told_in_words() -> None:
    def fail(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        raise RuntimeError("no compiler")

    model = tiny_transformer()
    with pytest.raises(StarError, match=r"cannot be compiled: .*no compiler") as told:
        drawn(model, Recordings(model, lambda: again, fail), 0)
    assert told.value.hint == "use STAR_CUDA_GRAPHS=1"


def test_first_pass_of_a_shape_is_not_recorded() -> None:
    model, made = tiny_transformer(), 0

    def counting(run: Callable[[], Tensor]) -> Play:
        nonlocal made
        made += 1
        return again(run)

    recordings = Recordings(model, lambda: counting)
    for images, expected in [(1, 0), (2, 0), (1, 4), (1, 4), (2, 8), (1, 8)]:
        drawn(model, recordings, 0, images)
        assert made == expected


def test_few_recordings_are_kept_those_asked_for_last() -> None:
    model = tiny_transformer()
    recordings = Recordings(model, lambda: again)
    told = {images: model.prompt(text(images)) for images in range(1, MOST + 2)}
    for prompted in told.values():
        assert recordings.blocks(prompted, SCHEDULE) is None
    kept = [recordings.blocks(told[images], SCHEDULE) for images in range(1, MOST + 1)]
    assert recordings.blocks(told[1], SCHEDULE) is kept[0]
    assert recordings.blocks(told[MOST + 1], SCHEDULE) is not None
    assert recordings.blocks(told[1], SCHEDULE) is kept[0]
    assert recordings.blocks(told[2], SCHEDULE) is None  # gone: it counts as never seen
    assert recordings.blocks(told[2], SCHEDULE) not in (None, kept[1])


def test_without_memory_for_a_recording_the_pass_runs() -> None:
    model = tiny_transformer()

    def full(run: Callable[[], Tensor]) -> Play:
        raise torch.OutOfMemoryError("CUDA out of memory")

    recordings = Recordings(model, lambda: full)
    for seed in range(3):
        assert_same(drawn(model, recordings, seed), drawn(model, None, seed))


def test_threads_share_no_recording() -> None:
    model = tiny_transformer()
    recordings = Recordings(model, lambda: again)
    prompted, found = model.prompt(text(1)), []

    def ask() -> None:
        found.extend(recordings.blocks(prompted, SCHEDULE) for _ in range(2))

    ask()
    other = Thread(target=ask)
    other.start()
    other.join()
    assert found[0] is None
    assert found[2] is None
    assert None not in (found[1], found[3])
    assert found[1] is not found[3]


def test_what_leaves_something_out_runs() -> None:
    model = tiny_transformer()

    def refuse(run: Callable[[], Tensor]) -> Play:
        raise AssertionError("recorded")

    recordings = Recordings(model, lambda: refuse)
    for speed in ("fast", "turbo", "reference"):
        options = SamplingOptions(**(OPTIONS.to_dict() | {"speed": speed}))
        for _ in range(2):
            drawn(model, recordings, 0, options=options)


@pytest.mark.parametrize(
    ("device", "switch", "expected"),
    [
        *(("cuda", "1", "recorded"), ("cuda", "compiled", "compiled"), ("cuda", "0", None), ("cuda", None, None)),
        *(("cpu", "1", None), ("cpu", "compiled", None)),
    ],
)
def test_graphs_are_asked_for_and_are_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, switch: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("STAR_CUDA_GRAPHS", raising=False)
    if switch is not None:
        monkeypatch.setenv("STAR_CUDA_GRAPHS", switch)
    assert choose_graphs(torch.device(device)) == expected


def test_graphs_are_not_asked_for_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAR_CUDA_GRAPHS", "compile")
    with pytest.raises(OptionError, match="STAR_CUDA_GRAPHS must be 0, 1 or compiled, not compile"):
        choose_graphs(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiler", [None, "inductor"])
def test_cuda_graphs_draw_the_same_tokens(compiler: str | None) -> None:
    model, quantizer = tiny_transformer().cuda(), tiny_quantizer().cuda()
    recordings = Recordings(model, partial(CudaGraphs, torch.device("cuda")), compiler)
    for seed in range(4):
        told = [condition.to("cuda") for condition in conditions(model.config, 2, seed)]
        given = (model, quantizer, *told, SCHEDULE, OPTIONS)
        recorded = draw(*given, random_generators([seed, seed + 1]), recordings=recordings)
        assert_same(recorded, draw(*given, random_generators([seed, seed + 1])))  # f_hat is a sum of codes alone
