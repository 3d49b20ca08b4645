"""Where the time of a pass goes: clocks around its parts, in a pass of its own, for reading them costs time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from star_cli.evaluation.speed_machine import now
from star_cli.generation import reference, sampler
from star_cli.models.drawing_cost import Place
from star_cli.pipeline import StarPipeline

PARTS = (
    *("text", "start", "input", "self_attention", "cross_attention", "feed_forward", "block_rest", "head"),
    *("stable", "sampling", "quantizer", "decode", "file", "rest"),
)
"""In the order in which they come; "rest" is what no clock was around."""
ONCE = ("text", "start", "decode", "file", "rest")
"""Of no scale, wherever the clock meets them."""


@dataclass(frozen=True)
class Times:
    """What the parts of one pass took."""

    seconds: Mapping[Place, float]

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


@dataclass
class Clocks:
    """A clock for each part at each scale; a part inside another one stops the outer's."""

    device: torch.device
    scales: int
    """Of the schedule."""
    scale: int = 0
    """The one that is being drawn."""
    _seconds: dict[Place, float] = field(default_factory=dict)
    _running: list[tuple[str, bool]] = field(default_factory=list)
    """Parts, the innermost last, and whether each was met outside the loop of scales."""
    _last: float = 0.0

    def begin(self) -> None:
        """Start the clock of "rest", at the first scale."""
        self.scale, self._running, self._last = 0, [("rest", False)], now(self.device)

    def end(self) -> Times:
        """Stop it; what the clocks showed since `begin`."""
        self._book()
        shown = Times(self._seconds)
        self._running, self._seconds = [], {}
        return shown

    def on_scale(self, done: int, total: int) -> None:
        """Take this for the pipeline's callback: it tells when a scale ends, of all images one after the other."""
        self._book()
        self.scale = done % self.scales

    def timed(self, part: str, call: Callable[..., Any], is_once: bool = False) -> Callable[..., Any]:
        """The same call, on the clock of `part`.

        Args:
            part: one of `PARTS`.
            call: to be timed.
            is_once: it is outside the loop of scales: neither it nor what is timed inside it belongs to one.
        """

        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._running:
                return call(*args, **kwargs)
            self._book()
            _, is_outer_once = self._running[-1]
            self._running.append((part, is_once or is_outer_once))
            try:
                return call(*args, **kwargs)
            finally:
                self._book()
                self._running.pop()

        return run

    def _book(self) -> None:
        time, (part, is_once) = now(self.device), self._running[-1]
        place = (part, None if is_once or part in ONCE else self.scale)
        self._seconds[place] = self._seconds.get(place, 0.0) + time - self._last
        self._last = time


def _watched(pipe: StarPipeline) -> Iterator[tuple[str, Any, str]]:
    """Part, whose call it is, and the call's name: one line for each thing that has a clock."""
    transformer, quantizer = pipe.transformer, pipe.vqvae.quantizer
    yield "text", pipe, "tell"
    yield "start", transformer, "prompt"
    yield "input", transformer, "embed_start"
    yield "input", transformer, "embed_codes"
    for block in transformer.blocks:
        yield "block_rest", block, "forward"
        yield "self_attention", block.self_attention, "forward"
        if block.cross_attention is not None:
            yield "cross_attention", block.cross_attention, "forward"
        yield "feed_forward", block.feed_forward, "forward"
    yield "block_rest", transformer, "run_blocks"
    yield "head", transformer, "logits"
    for loop in (sampler, reference):  # whichever the level of speed takes
        yield "stable", loop, "draw_stable"
        yield "sampling", loop, "guide"
        yield "sampling", loop, "draw_codes"
    yield "quantizer", quantizer, "look_up"
    yield "quantizer", quantizer, "add_scale"
    yield "quantizer", quantizer, "next_input"
    yield "quantizer", pipe.decoder, "f_hat"  # the second sum, from the tokens alone
    yield "decode", pipe.decoder, "pixels"  # whatever decoder the device gets


@contextmanager
def clocks_around(pipe: StarPipeline, scales: int) -> Iterator[Clocks]:
    """Clocks around the parts of a pipeline, taken off again at the end; not while another thread draws with it."""
    clocks = Clocks(pipe.device, scales)
    with ExitStack() as stack:
        stack.callback(setattr, pipe, "recordings", pipe.recordings)
        pipe.recordings = None  # what is played as a whole has no parts, and what is recorded must not wait for clocks
        for part, owner, name in _watched(pipe):
            stack.callback(_put_back, owner, name, name in vars(owner), getattr(owner, name))
            # what the pipeline itself does is before or after the loop of scales
            setattr(owner, name, clocks.timed(part, getattr(owner, name), is_once=owner in (pipe, pipe.decoder)))
        yield clocks


def _put_back(owner: Any, name: str, was_own: bool, call: Callable[..., Any]) -> None:
    if was_own:
        setattr(owner, name, call)
    else:  # the class's own shows again
        delattr(owner, name)
