"""What is to be drawn: the subject and seed of each image, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from star_cli.asked import Drawable, check_kind, check_texts, checked_numbers
from star_cli.classes import check_class, find_class
from star_cli.errors import OptionError


@dataclass(frozen=True)
class ImageJob:
    """One image to draw."""

    subject: str | int
    """Prompt or class."""
    seed: int
    negative: str = ""
    """What guidance leads away from."""


def jobs_of(
    model: Drawable,
    prompts: str | Sequence[str],
    classes: int | str | Sequence[int | str],
    negative: str,
    seed: int,
    num: int,
) -> list[ImageJob]:
    """Jobs of prompts or classes, image i of each drawn from seed + i.

    Args:
        model: that is to draw them.
        prompts: one prompt or several, for a model that draws words.
        classes: one class or several, by number or name, for a model that draws classes.
        negative: what guidance leads away from.
        seed: of each subject's first image.
        num: images of each subject.
    Returns:
        All images of the first subject, then those of the second, and so on.
    Raises:
        OptionError: an empty prompt, a seed or number out of range, a class that is none; words for a model that draws
            classes, or the reverse.
    """
    # numpy's integers are no int
    texts = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str | bytes) else [prompts]
    named = list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else [classes]
    check_kind(model, texts, named, negative)
    subjects: list[str] | list[int] = texts
    if model.class_count is None:
        check_texts(texts, negative)
    else:
        subjects = _labels(named, model.class_count)
    numbers = checked_numbers({"seed": seed, "num": num})
    seeds = [numbers["seed"] + index for index in range(numbers["num"])]
    return [ImageJob(subject, one, negative) for subject in subjects for one in seeds]


def _labels(named: Sequence[int | str], count: int) -> list[int]:
    if not named:
        raise OptionError("there is no class", "say which class to draw")
    return [find_class(one, count) if isinstance(one, str) else check_class(one, count) for one in named]
