"""What is to be drawn: prompts, flags and a picture's recipe become one checked request. No weight is read here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from star_cli.checkpoints.folder import ModelFolder
from star_cli.checkpoints.known import SHIPPED, find_model
from star_cli.errors import ModelNotFoundError, OptionError, RecipeError
from star_cli.generation.options import SamplingOptions
from star_cli.images import read_recipe

SAMPLING = ("guidance", "top_k", "top_p", "temperature")
"""Fields of `SamplingOptions` that are flags and recipe keys, too."""

_RECIPE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("prompt", "negative", "model", "model_hash", "device", "dtype"), (str,)),
    **dict.fromkeys(("res", "seed", "top_k"), (int,)),
    **dict.fromkeys(("guidance", "top_p", "temperature"), (int, float)),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that decides the pictures."""

    folder: ModelFolder
    prompts: tuple[str, ...]
    negative: str
    res: int
    seed: int
    num: int
    sampling: SamplingOptions
    device: str
    dtype: str
    is_device_from_recipe: bool = False
    """The device is a memory, not a wish: it may be missing here."""
    warnings: tuple[str, ...] = ()
    """What the user should know though the work goes on."""


def make_request(prompts: Sequence[str] | None, flags: Mapping[str, Any], from_image: Path | None) -> Request:
    """Settle every value: a flag that was given, else the recipe's, else the model's or the program's default.

    Args:
        prompts: as on the command line; "-" stands for standard input.
        flags: by name, None where not given: model, res, seed, num, negative, device, dtype and those of `SAMPLING`.
        from_image: the picture whose recipe is repeated.
    Raises:
        OptionError: a value that cannot be used, with its children for models and recipes.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    recipe = {} if from_image is None else _checked_recipe(from_image)
    texts = _read_prompts(prompts) if prompts else [recipe["prompt"]] if recipe else []
    settled = {"negative": "", "seed": 0, "num": 1, "device": "auto", "dtype": "auto", **recipe, **given}
    _check_texts([*texts, settled["negative"]], len(texts))
    # Checked before the model is looked for: wrong is wrong whatever the model.
    for name, least in (("seed", 0), ("num", 1), ("res", 1)):
        if name in settled and settled[name] < least:
            raise OptionError(f"--{name} must be a whole number of at least {least}, not {settled[name]}")
    chosen = {name: settled[name] for name in SAMPLING if name in settled}
    SamplingOptions(**chosen)
    folder = _find_model(settled.get("model", SHIPPED), from_recipe=bool(recipe) and "model" not in given)
    return Request(
        folder=folder,
        prompts=tuple(texts),
        negative=settled["negative"],
        res=_checked_resolution(settled.get("res", folder.default_resolution), folder),
        seed=settled["seed"],
        num=settled["num"],
        sampling=replace(folder.sampling, **chosen),
        device=settled["device"],
        dtype=settled["dtype"],
        is_device_from_recipe=bool(recipe) and "device" not in given,
        warnings=_model_warnings(recipe, folder),
    )


def _read_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts, with `-` replaced by the lines of standard input."""
    if list(prompts).count("-") > 1:
        raise OptionError("- is given twice, standard input can be read once", "give - once")
    texts: list[str] = []
    for prompt in prompts:
        texts += _read_stdin() if prompt == "-" else [prompt]
    return texts


def _read_stdin() -> list[str]:
    """One prompt a line; empty lines are none."""
    if sys.stdin is None:
        raise OptionError("standard input is closed", "give the prompt as an argument")
    text = sys.stdin.buffer.read().decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    if lines := [line.rstrip("\r") for line in text.split("\n") if line.strip()]:
        return lines
    raise OptionError("there is no prompt on standard input", "write one prompt a line")


def _check_texts(texts: Sequence[str], prompts: int) -> None:
    if not prompts:
        raise OptionError("there is no prompt", 'say what to draw: star generate "a red circle"')
    if not all(text.strip() for text in texts[:prompts]):
        raise OptionError("the prompt is empty", 'say what to draw: star generate "a red circle"')
    for text in texts:
        if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that Python could not decode
            raise OptionError(f"the prompt holds bytes that are not UTF-8: {text}", "write it in UTF-8")


def _checked_resolution(res: int, folder: ModelFolder) -> int:
    known = sorted(folder.schedules)
    if res not in known:
        nearest = min(known, key=lambda side: (abs(side - res), -side))
        raise OptionError(
            f"model {folder.name} draws {' or '.join(map(str, known))} pixels, not {res}", f"use --res {nearest}"
        )
    return res


def _find_model(name_or_folder: str, from_recipe: bool) -> ModelFolder:
    try:
        return find_model(name_or_folder)
    except ModelNotFoundError as error:
        if from_recipe:
            raise RecipeError(
                f"the picture was drawn with {name_or_folder!r}, which is not here", "name its folder with --model"
            ) from error
        raise


def _checked_recipe(path: Path) -> dict[str, Any]:
    """The recipe's values by the names of the flags.

    Raises:
        RecipeError: none is there, or it lacks a value or has one of a wrong kind.
    """
    recipe = read_recipe(path)
    if missing := sorted(set(_RECIPE_TYPES) - set(recipe)):
        raise RecipeError(f"{path}: its recipe does not say {', '.join(missing)}")
    for name, kinds in _RECIPE_TYPES.items():
        value = recipe[name]
        too_large = isinstance(value, int) and abs(value) >= 2**64  # no float holds some of these
        if not isinstance(value, kinds) or isinstance(value, bool) or too_large:
            raise RecipeError(f"{path}: its recipe has a wrong {name}: {value!r}")
    return {name: recipe[name] for name in _RECIPE_TYPES}


def _model_warnings(recipe: Mapping[str, Any], folder: ModelFolder) -> tuple[str, ...]:
    if not recipe or recipe["model_hash"] == folder.hash:
        return ()
    return (
        f"the picture was drawn with another {folder.name} ({recipe['model_hash'][:12]}, here is {folder.hash[:12]}): "
        "the new one may differ",
    )
