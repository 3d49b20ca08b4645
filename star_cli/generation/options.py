"""How tokens are drawn: one frozen, checked object shared by commands, the Python API and the recipe in the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from star_cli.errors import OptionError
from star_cli.models.config import Config

LARGEST_SEED = 2**63 - 1
"""What torch's generators take."""

MOST_GUIDANCE, LEAST_TEMPERATURE = 1000, 0.0001
"""Beyond these, float32 overflows on the way to probabilities; long before, they act like greedy draws."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(Config):
    """Options of the draw. A model folder stores its own defaults.

    Raises:
        OptionError: a value outside its range.
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
        _require(0 <= self.guidance <= MOST_GUIDANCE, "guidance", self.guidance, f"a number from 0 to {MOST_GUIDANCE}")
        _require(self.top_k >= 1, "top-k", self.top_k, "a whole number of at least 1")
        _require(0 < self.top_p <= 1, "top-p", self.top_p, "a number above 0 and at most 1")
        _require(
            self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf,
            "temperature",
            self.temperature,
            f"0, or a number of at least {LEAST_TEMPERATURE}",
        )
        _require(self.smooth >= 0, "smooth", self.smooth, "a whole number of at least 0")
        if self.compat == "official" and self.smooth:
            raise OptionError("--compat official draws tokens, without --smooth", "leave one of them out")
        if self.compat == "official" and self.speed != "exact":
            raise OptionError(
                f"--compat official draws as the published code does, not with --speed {self.speed}",
                "leave one of them out",
            )

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
            raise OptionError("--smooth and stable sampling both say how the last scales are drawn", "give --no-stable")
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


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise OptionError(f"--{name} must be {wanted}, not {value}")
