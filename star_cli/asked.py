"""What may be asked of a model, checked before any weight is read: commands, batches and the library ask the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from star_cli.errors import OptionError
from star_cli.generation.options import LARGEST_SEED, SamplingOptions, whole_number
from star_cli.models.schedule import ScaleSchedule

if TYPE_CHECKING:
    from star_cli.checkpoints.folder import ModelFolder

SAMPLING = ("guidance", "top_k", "top_p", "temperature", "smooth", "stable", "compat", "speed")
"""Fields of `SamplingOptions` that are flags and recipe keys, too."""
_SAY_WHAT = 'say what to draw: star generate "a red apple"'


class Drawable(Protocol):
    """A model, loaded or not."""

    @property
    def name(self) -> str:
        """As messages call it."""
        ...

    @property
    def schedules(self) -> Mapping[int, ScaleSchedule]:
        """Of each resolution in pixels."""
        ...

    @property
    def default_resolution(self) -> int:
        """Drawn when none is asked for."""
        ...

    @property
    def class_count(self) -> int | None:
        """Classes that it draws; None when it draws words."""
        ...


def check_texts(prompts: Sequence[str], negative: str) -> None:
    """Can these words be drawn?

    Raises:
        OptionError: no prompt, an empty one, something else than text, or bytes that are not UTF-8.
    """
    if not prompts:
        raise OptionError("there is no prompt", _SAY_WHAT)
    for text in (*prompts, negative):
        if not isinstance(text, str):
            raise OptionError(f"a prompt must be text, not {text!r}")
    if not all(prompt.strip() for prompt in prompts):
        raise OptionError("the prompt is empty", _SAY_WHAT)
    for text in (*prompts, negative):
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that Python could not decode
            raise OptionError(f"the prompt holds bytes that are not UTF-8: {text}", "write it in UTF-8")


def checked_numbers(values: Mapping[str, Any]) -> dict[str, int]:
    """Those of seed, num and res that are given, as plain whole numbers that any model could use.

    Raises:
        OptionError: one is not.
    """
    checked = {}
    for name, least in (("seed", 0), ("num", 1), ("res", 1)):
        if name in values:
            number = whole_number(values[name])
            if number is None or number < least:
                shown = values[name] if number is None else number
                raise OptionError(f"--{name} must be a whole number of at least {least}, not {shown!r}")
            checked[name] = number
    num, seed = checked.get("num", 1), checked.get("seed", 0)
    if num > LARGEST_SEED:
        raise OptionError(f"--num must be at most {LARGEST_SEED}, not {num}")
    if seed > (most := LARGEST_SEED - num + 1):
        raise OptionError(f"--seed must be at most {most}, not {seed}")
    return checked


def check_sampling(values: Mapping[str, Any]) -> None:
    """Are the options of the draw in range, whatever the model?

    Raises:
        OptionError: one is not.
    """
    SamplingOptions(**_chosen(values))


def sampling_of(values: Mapping[str, Any], folder: ModelFolder) -> SamplingOptions:
    """The model's options of the draw, changed by those that are given.

    Raises:
        OptionError: one is out of range, or beyond what the weights can do.
    """
    return replace(folder.sampling, **_chosen(values)).for_head(folder.transformer.stable_head)


def checked_dtype(dtype: str, compat: str | None) -> str:
    """The published code holds its weights in float32."""
    return "float32" if compat == "official" and dtype == "auto" else dtype


def precision_of(values: Mapping[str, Any]) -> str:
    """What the weights are held in: the dtype, or what they are rounded to."""
    quantize = values.get("quantize", "none")
    return str(values.get("dtype", "float32") if quantize == "none" else quantize)


def check_kind(model: Drawable, texts: Sequence[str], named: Sequence[str | int], negative: str) -> None:
    """Words for a model that draws words, a class for one that draws classes.

    Raises:
        OptionError: the other.
    """
    if model.class_count is not None:
        if texts:
            raise OptionError(
                f"model {model.name} draws a class, not words", 'say which: --class 207, or --class "golden retriever"'
            )
        if negative:
            raise OptionError(f"model {model.name} draws a class: --negative has no meaning", "leave it out")
    elif named:
        raise OptionError(
            f"model {model.name} draws words, not a class", 'give a prompt: star generate "a golden retriever"'
        )


def checked_resolution(res: int | None, model: Drawable) -> int:
    """The side in pixels, the model's own when None.

    Raises:
        OptionError: no whole number, or the model does not draw it.
    """
    if res is None:
        return model.default_resolution
    if (side := whole_number(res)) is None:
        raise OptionError(f"--res must be a whole number of at least 1, not {res!r}")
    known = sorted(model.schedules)
    if side not in known:
        nearest = min(known, key=lambda other: (abs(other - side), -other))
        raise OptionError(
            f"model {model.name} draws {' or '.join(map(str, known))} pixels, not {side}", f"use --res {nearest}"
        )
    return side


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in SAMPLING if name in values}
