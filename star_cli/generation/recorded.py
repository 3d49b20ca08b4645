"""The blocks of a scale recorded once and played from then on: CUDA graphs.

A scale of one picture is hundreds of short kernels on a GPU, and for all but the largest scales starting them takes
longer than they do. A graph starts them all at once. It reads and writes the same memory each time, so what changes
from picture to picture (the prompt's keys and values, each scale's input) is copied into memory of the recording.

Recording costs several runs, so a pass is recorded when one of its shape has been drawn before: never for one picture.
Blocks may be compiled besides, which joins norms, rotation and element-wise work to few kernels, and costs minutes.
They round otherwise then, so all passes run them compiled, recorded or not: no picture depends on those before it.

Letters: B rows, l tokens of a scale, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from star_cli.errors import StarError
from star_cli.generation.cache import make_caches
from star_cli.models.attention import KeysValues
from star_cli.models.block import Block, Prompted
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import RunBlock, StarTransformer, run_block

Play = Callable[[], Tensor]
"""Does again what was recorded; the result is in the same memory each time."""
Record = Callable[[Callable[[], Tensor]], Play]
MOST = 2
"""Recordings kept, for each has a KV cache of its own (depth 30, 1024 px, bfloat16: 2.6 GB) beside its activations."""
_MOST_VARIANTS = 1024
"""Of compiled code: one for each scale of each kind of pass, and for how its KV cache stands."""
_WARM_UPS = 2  # libraries choose their kernels, and take their memory, in the first runs


class CudaGraphs:
    """Records calls on one GPU, in memory that these recordings share: only their results outlive the next one.

    Args:
        device: the GPU, whether it is torch's current one or not.
    """

    def __init__(self, device: torch.device):
        self._device = device
        with torch.cuda.device(device):
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def __call__(self, run: Callable[[], Tensor]) -> Play:
        """Record what a call does; it must always work on the same memory, and never wait for the GPU."""
        with torch.cuda.device(self._device):
            usual = torch.cuda.current_stream()
            self._stream.wait_stream(usual)
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            usual.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # "thread_local": the words of a batch's next prompts are read meanwhile, in another thread
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                result = run()

        def play() -> Tensor:
            graph.replay()
            return result

        return play


class RecordedBlocks:
    """All blocks of a transformer, recorded scale by scale for passes of one shape.

    Args:
        transformer: whose blocks; its weights must stay where they are.
        prompted: of a pass of this shape.
        schedule: the scales, which are to be run in their order.
        record: makes a recording of a call.
        run: of a block, `run_block` or that compiled.
    """

    def __init__(
        self,
        transformer: StarTransformer,
        prompted: Prompted,
        schedule: ScaleSchedule,
        record: Record,
        run: RunBlock = run_block,
    ):
        self._transformer, self._schedule, self._run_block = transformer, schedule, run
        self._prompted = _copy(prompted)
        self._caches = make_caches(transformer.config.depth, schedule.offsets[-2])
        rows, _, width = prompted.start.shape
        self._inputs = [prompted.start.new_zeros(rows, size, width, dtype=torch.float32) for size in schedule.sizes]
        self._plays = [record(partial(self._run, scale)) for scale in range(len(schedule))]

    def begin(self, prompted: Prompted) -> None:
        """Take the prompts of the next pass."""
        for held, new in zip(_tensors(self._prompted), _tensors(prompted), strict=True):
            held.copy_(new)

    def __call__(self, x: Tensor, scale: int) -> Tensor:
        """Embedded tokens of a scale (B, l, C) to hidden states (B, l, C), good until the next pass."""
        self._inputs[scale].copy_(x)
        return self._plays[scale]()

    def _run(self, scale: int) -> Tensor:
        for cache in self._caches:
            cache.filled = self._schedule.offsets[scale]
        tokens = self._schedule.slice(scale)
        return self._transformer.run_blocks(
            self._inputs[scale], self._prompted, self._schedule, tokens, stores=self._caches, run=self._run_block
        )


class Recordings:
    """Those of one transformer, for each thread its own: passes that overlap must not write in one memory.

    Args:
        transformer: whose blocks.
        new_recorder: gives what makes the recordings of one kind of pass.
        compiler: backend of `torch.compile` for the blocks; None leaves them as they are.
    """

    def __init__(
        self,
        transformer: StarTransformer,
        new_recorder: Callable[[], Record],
        compiler: str | Callable[..., Any] | None = None,
    ):
        self._transformer = transformer
        self._new_recorder = new_recorder
        self.run_block: RunBlock = run_block if compiler is None else _compiled(compiler)
        """Runs a block in every pass that could be recorded, whether it is or not."""
        self._seen: set[object] = set()
        self._kept: dict[object, RecordedBlocks] = {}

    def blocks(self, prompted: Prompted, schedule: ScaleSchedule) -> RecordedBlocks | None:
        """The recording for a pass, ready for its prompts.

        None when the pass is the first of its kind, or when there is no memory for a recording.
        """
        shapes = (prompted.start.shape, *(tensor.shape for tensor in _tensors(prompted)))
        kind = (get_ident(), schedule, prompted.heard, *shapes)
        if kind not in self._seen:
            self._seen.add(kind)
            return None
        known = self._kept.pop(kind, None) or self._record(prompted, schedule)
        if known is not None:
            known.begin(prompted)
            self._kept[kind] = known
        return known

    def _record(self, prompted: Prompted, schedule: ScaleSchedule) -> RecordedBlocks | None:
        while len(self._kept) >= MOST:  # before memory is taken
            longest_ago = next(iter(self._kept))
            del self._kept[longest_ago]
            self._seen.discard(longest_ago)  # kinds that take turns are not recorded each time
        try:
            return RecordedBlocks(self._transformer, prompted, schedule, self._new_recorder(), self.run_block)
        except torch.OutOfMemoryError:
            self._kept.clear()
            self._seen.clear()
            return None


def _compiled(compiler: str | Callable[..., Any]) -> RunBlock:
    """`run_block` with code for each shape, which is faster than code for any, and is used often."""
    compiled = torch.compile(run_block, backend=compiler, dynamic=False)

    def run(block: Block, *given: Any) -> Tensor:
        most = torch._dynamo.config.patch(recompile_limit=_MOST_VARIANTS, accumulated_recompile_limit=_MOST_VARIANTS)
        try:
            with most:
                return compiled(block, *given)
        except torch._dynamo.exc.TorchDynamoException as error:
            told = " ".join(str(error).splitlines()[:2])
            raise StarError(f"the blocks cannot be compiled: {told}", "use STAR_CUDA_GRAPHS=1") from error

    return run


def _tensors(prompted: Prompted) -> Iterator[Tensor]:
    """What the blocks read of it."""
    for held in prompted.text:
        yield from held
    for tensor in (prompted.text_mask, prompted.modulation_vector):
        if tensor is not None:
            yield tensor


def _copy(prompted: Prompted) -> Prompted:
    """What the blocks read of it, in memory of its own."""
    return replace(
        prompted,
        start=prompted.start.new_empty(0),
        stable_start=None,
        text=tuple(KeysValues(_alike(held.keys), _alike(held.values)) for held in prompted.text),
        text_mask=None if prompted.text_mask is None else _alike(prompted.text_mask),
        modulation_vector=None if prompted.modulation_vector is None else _alike(prompted.modulation_vector),
    )


def _alike(tensor: Tensor) -> Tensor:
    """A copy of the same strides, for which compiled code is the same."""
    if 0 in tensor.stride():  # repeated in one place, which nobody may write to
        return tensor.clone()
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
