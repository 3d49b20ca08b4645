"""What may be asked of a model, checked before any weight is read: `star generate` and `star batch` ask the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from star_cli.checkpoints.folder import ModelFolder
from star_cli.errors import OptionError
from star_cli.generation.options import LARGEST_SEED, SamplingOptions

SAMPLING = ("guidance", "top_k", "top_p", "temperature", "smooth", "stable", "compat", "speed")
"""Fields of `SamplingOptions` that are flags and recipe keys, too."""


def check_texts(texts: Sequence[str], prompts: int) -> None:
    """Can these words be drawn? The first `prompts` are prompts, the rest negative ones.

    Raises:
        OptionError: no prompt, an empty one, or bytes that are not UTF-8.
    """
    if not prompts:
        raise OptionError("there is no prompt", 'say what to draw: star generate "a red circle"')
    if not all(text.strip() for text in texts[:prompts]):
        raise OptionError("the prompt is empty", 'say what to draw: star generate "a red circle"')
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that Python could not decode
            raise OptionError(f"the prompt holds bytes that are not UTF-8: {text}", "write it in UTF-8")


def check_numbers(values: Mapping[str, Any]) -> None:
    """Are seed, num and res, where they are given, whole numbers that any model could use?

    Raises:
        OptionError: one is not.
    """
    for name, least in (("seed", 0), ("num", 1), ("res", 1)):
        if name in values and values[name] < least:
            raise OptionError(f"--{name} must be a whole number of at least {least}, not {values[name]}")
    most = LARGEST_SEED - values.get("num", 1) + 1
    if values.get("seed", 0) > most:
        raise OptionError(f"--seed must be at most {most}, not {values['seed']}")


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


def check_kind(folder: ModelFolder, texts: Sequence[str], named: Sequence[str], negative: str) -> None:
    """Words for a model that draws words, a class for one that draws classes.

    Raises:
        OptionError: the other.
    """
    if folder.transformer.conditioning == "class":
        if texts:
            raise OptionError(
                f"model {folder.name} draws a class, not words", 'say which: --class 207, or --class "golden retriever"'
            )
        if negative:
            raise OptionError(f"model {folder.name} draws a class: --negative has no meaning", "leave it out")
    elif named:
        raise OptionError(
            f"model {folder.name} draws words, not a class", 'give a prompt: star generate "a golden retriever"'
        )


def checked_resolution(res: int | None, folder: ModelFolder) -> int:
    """The side in pixels, the model's own when None.

    Raises:
        OptionError: the model does not draw it.
    """
    res = folder.default_resolution if res is None else res
    known = sorted(folder.schedules)
    if res not in known:
        nearest = min(known, key=lambda side: (abs(side - res), -side))
        raise OptionError(
            f"model {folder.name} draws {' or '.join(map(str, known))} pixels, not {res}", f"use --res {nearest}"
        )
    return res


def _chosen(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in SAMPLING if name in values}
