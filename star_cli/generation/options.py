"""How tokens are drawn: one frozen, checked object shared by commands, the Python API and the recipe in the image."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from star_cli.errors import OptionError
from star_cli.models.config import Config

LARGEST_SEED = 2**63 - 1
"""What torch's generators take."""

MOST_GUIDANCE, LEAST_TEMPERATURE = 1000, 0.0001
"""Beyond these, float32 overflows on the way to probabilities; long before, they act like greedy draws."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Config):
    """Options of the draw. A model folder stores its own defaults.

    Numbers of other libraries (numpy, torch) become plain ones, for the recipe is JSON.

    Raises:
        OptionError: a value of another kind or outside its range.
    """

    guidance: float = 4.0
    """Classifier-free guidance strength at the last scale; it rises from 0 at the first (STAR, VAR)."""
    top_k: int = 600
    """Only the k likeliest codes may be drawn."""
    top_p: float = 0.8
    """Only the likeliest codes that together reach this probability may be drawn, after `top_k`."""
    temperature: float = 1.0
    """Divides the guided logits; 0 always takes the likeliest code (greedy)."""
    smooth: int = 0
    """So many of the last scales take the mean of the codes that may be drawn, each by its probability, in place of one
    code a token: fewer ragged edges, less detail. Such a picture is made of f_hat, not of tokens."""
    stable: bool | None = None
    """Draw the last scales in several steps with the head made for it (STAR, stable sampling). None: when the weights
    have that head."""
    compat: Literal["none", "official"] = "none"
    """"official": the random stream and the rounding of the published code, for one image alone."""
    speed: Literal["reference", "exact", "fast", "turbo"] = "exact"
    """"reference": the plainest loop, to compare with. "exact": the same tokens, sooner. "fast": the last scales
    without guidance. "turbo": besides, only half of their tokens through the blocks."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._settle("guidance", _number, lambda x: 0 <= x <= MOST_GUIDANCE, f"a number from 0 to {MOST_GUIDANCE}")
        self._settle("top_k", whole_number, lambda k: k >= 1, "a whole number of at least 1")
        self._settle("top_p", _number, lambda p: 0 < p <= 1, "a number above 0 and at most 1")
        self._settle(
            "temperature",
            _number,
            lambda t: t == 0 or LEAST_TEMPERATURE <= t < math.inf,
            f"0, or a number of at least {LEAST_TEMPERATURE}",
        )
        self._settle("smooth", whole_number, lambda count: count >= 0, "a whole number of at least 0")
        if not (self.stable is None or isinstance(self.stable, bool)):
            raise OptionError(f"stable must be true, false or left out, not {self.stable!r}")
        if self.compat == "official" and self.smooth:
            raise OptionError(
                "--compat official draws tokens, without --smooth", "leave --compat out, or give --smooth 0"
            )
        if self.compat == "official" and self.speed != "exact":
            raise OptionError(
                f"--compat official draws as the published code does, not with --speed {self.speed}",
                "leave --compat out, or give --speed exact",
            )

    def _settle(self, name: str, read: _Read, is_good: Callable[[Any], bool], wanted: str) -> None:
        """Make a field a plain number, and refuse one that is none or out of range."""
        given = getattr(self, name)
        value = read(given)
        if value is None or not is_good(value):
            raise OptionError(f"--{name.replace('_', '-')} must be {wanted}, not {given}")
        object.__setattr__(self, name, value)  # the dataclass is frozen for everybody else

    def for_head(self, has_head: bool) -> Self:
        """The same options with `stable` settled.

        Raises:
            OptionError: stable sampling is asked for, and the weights cannot do it.
        """
        if self.stable and not has_head:
            raise OptionError(
                "--stable: these weights have no head for stable sampling", "leave it out, or use other weights"
            )
        settled = replace(self, stable=has_head if self.stable is None else self.stable)
        if settled.stable and settled.smooth:
            raise OptionError(
                "--smooth and stable sampling both say how the last scales are drawn", "give --no-stable, or --smooth 0"
            )
        return settled


def check_compat(options: SamplingOptions, images: int, dtype: str) -> None:
    """Can these images be drawn as the published code draws them?

    Raises:
        OptionError: several images, or weights in half precision, which that code never has.
    """
    if options.compat != "official":
        return
    if images != 1:
        raise OptionError(
            f"--compat official draws one image a call, not {images}: in the published code they change each other",
            "give one prompt, and no --num",
        )
    if dtype != "float32":
        raise OptionError(
            f"--compat official needs the weights in float32, not {dtype}: the published code rounds where it computes",
            "use --dtype float32",
        )


def whole_number(value: object) -> int | None:
    """As a plain int, also what numpy and torch call one; None for anything else, True and False among it."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        return None


def _number(value: Any) -> float | None:
    """As a plain number; None for anything else. An int stays one, as it then does in the recipe."""
    if isinstance(value, bool | str | bytes):
        return None
    try:
        return value if type(value) in (int, float) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's, for more than one number
        return None


_Read = Callable[[Any], int | float | None]
