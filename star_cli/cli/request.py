"""What is to be drawn: prompts, flags and a picture's recipe become one checked request. No weight is read here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_cli.asked import (
    check_kind,
    check_sampling,
    check_texts,
    checked_dtype,
    checked_numbers,
    checked_resolution,
    precision_of,
    sampling_of,
)
from star_cli.batch.rows import is_prompt
from star_cli.checkpoints.folder import ModelFolder
from star_cli.checkpoints.known import SHIPPED, find_model
from star_cli.checkpoints.published import PUBLISHED
from star_cli.classes import find_class
from star_cli.errors import ModelNotFoundError, OptionError, RecipeError
from star_cli.generation.options import SamplingOptions, check_compat
from star_cli.images import read_recipe

_RECIPE_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "model_hash", "device", "dtype"), (str,)),
    **dict.fromkeys(("res", "seed", "top_k"), (int,)),
    **dict.fromkeys(("guidance", "top_p", "temperature"), (int, float)),
}
_SUBJECT_TYPES: dict[str, tuple[type, ...]] = {"prompt": (str,), "negative": (str,)}
_CLASS_TYPES: dict[str, tuple[type, ...]] = {"class": (int,)}
_LATER_TYPES: dict[str, tuple[type, ...]] = {
    "smooth": (int,),
    "stable": (bool, type(None)),
    "compat": (str,),
    "quantize": (str,),
    "speed": (str,),
}
"""Keys that not every recipe has."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that decides the pictures."""

    folder: ModelFolder
    prompts: tuple[str, ...]
    """Empty for a model that draws classes."""
    classes: tuple[int, ...] = ()
    """Empty for a model that draws words."""
    negative: str
    res: int
    seed: int
    num: int
    sampling: SamplingOptions
    device: str
    dtype: str
    quantize: str = "none"
    is_device_from_recipe: bool = False
    """The device is a memory, not a wish: it may be missing here."""
    warnings: tuple[str, ...] = ()
    """What the user should know though the work goes on."""

    @property
    def images(self) -> int:
        """How many pictures."""
        return (len(self.prompts) + len(self.classes)) * self.num


def make_request(
    prompts: Sequence[str] | None,
    classes: Sequence[str] | None,
    flags: Mapping[str, Any],
    from_image: Path | None,
    defaults: Mapping[str, Any],
) -> Request:
    """Settle every value: a flag that was given, else the recipe's, the user's default, the model's, the program's.

    Args:
        prompts: as on the command line; "-" stands for standard input.
        classes: as on the command line: numbers or names.
        flags: by name, None where not given: model, res, seed, num, negative, device, dtype,
            quantize and those of `SAMPLING`.
        from_image: the picture whose recipe is repeated.
        defaults: the user's (see `defaults.py`).
    Raises:
        OptionError: a value that cannot be used, with its children for models and recipes.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    recipe = {} if from_image is None else _checked_recipe(from_image)
    if prompts and classes:
        raise OptionError("a prompt and --class are given", "give a prompt or a class, whichever the model draws")
    texts = _read_prompts(prompts) if prompts else []
    named = list(classes or ())
    if recipe and not texts and not named:
        texts, named = ([recipe["prompt"]], []) if "prompt" in recipe else ([], [str(recipe["class"])])
    settled = {
        "negative": "",
        "seed": 0,
        "num": 1,
        "device": "auto",
        "dtype": "auto",
        "quantize": "none",
        **defaults,
        **recipe,
        **given,
    }
    if texts or not named:
        check_texts(texts, settled["negative"])
    # Checked before the model is looked for: wrong is wrong whatever the model.
    settled |= checked_numbers(settled)
    check_sampling(settled)
    folder = _find_model(settled.get("model", SHIPPED), from_recipe=bool(recipe) and "model" not in given)
    check_kind(folder, texts, named, settled["negative"])
    request = Request(
        folder=folder,
        prompts=tuple(texts),
        classes=tuple(find_class(one, folder.transformer.classes) for one in named),
        negative=settled["negative"],
        res=checked_resolution(settled.get("res"), folder),
        seed=settled["seed"],
        num=settled["num"],
        sampling=sampling_of(settled, folder),
        device=settled["device"],
        dtype=checked_dtype(settled["dtype"], settled.get("compat")),
        quantize=settled["quantize"],
        is_device_from_recipe=bool(recipe) and "device" not in given,
        warnings=_model_warnings(recipe, folder),
    )
    check_compat(request.sampling, request.images, precision_of(settled | {"dtype": request.dtype}))
    return request


def _read_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts, with `-` replaced by the lines of standard input."""
    if list(prompts).count("-") > 1:
        raise OptionError("- is given twice, standard input can be read once", "give - once")
    texts: list[str] = []
    for prompt in prompts:
        texts += _read_stdin() if prompt == "-" else [prompt]
    return texts


def _read_stdin() -> list[str]:
    """One prompt a line, by the rule of a batch's text files."""
    if sys.stdin is None:
        raise OptionError("standard input is closed", "give the prompt as an argument")
    try:
        data = sys.stdin.buffer.read()
    except OSError as error:
        raise OptionError(f"standard input cannot be read: {error.strerror or error}") from error
    text = data.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    if lines := [line.rstrip("\r") for line in text.split("\n") if is_prompt(line)]:
        return lines
    raise OptionError("there is no prompt on standard input", "write one prompt a line")


def _find_model(name_or_folder: str, from_recipe: bool) -> ModelFolder:
    try:
        return find_model(name_or_folder)
    except (ModelNotFoundError, OSError) as error:  # OSError: a name too long for any folder
        if from_recipe:
            hint = getattr(error, "hint", None) if name_or_folder in PUBLISHED else "name its folder with --model"
            raise RecipeError(f"the picture was drawn with {name_or_folder!r}, which is not here", hint) from error
        raise


def _checked_recipe(path: Path) -> dict[str, Any]:
    """The recipe's values by the names of the flags.

    Raises:
        RecipeError: none is there, or it lacks a value or has one of a wrong kind.
    """
    recipe = {"speed": "exact", "smooth": 0, **read_recipe(path)}  # nothing else was there before it
    types = {**_RECIPE_TYPES, **(_CLASS_TYPES if "class" in recipe and "prompt" not in recipe else _SUBJECT_TYPES)}
    if missing := sorted(set(types) - set(recipe)):
        raise RecipeError(f"{path}: its recipe does not say {', '.join(missing)}")
    types |= {name: kinds for name, kinds in _LATER_TYPES.items() if name in recipe}
    for name, kinds in types.items():
        value = recipe[name]
        too_large = isinstance(value, int) and abs(value) >= 2**64  # no float holds some of these
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds) or too_large:
            raise RecipeError(f"{path}: its recipe has a wrong {name}: {value!r}")
    return {name: recipe[name] for name in types}


def _model_warnings(recipe: Mapping[str, Any], folder: ModelFolder) -> tuple[str, ...]:
    if not recipe or recipe["model_hash"] == folder.hash:
        return ()
    if recipe["model"] != folder.name:
        return (f"the picture was drawn with {recipe['model']}, not with {folder.name}: the new one differs",)
    return (
        f"the picture was drawn with another {folder.name} ({recipe['model_hash'][:12]}, here is {folder.hash[:12]}): "
        "the new one may differ",
    )
