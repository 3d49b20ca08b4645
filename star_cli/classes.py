"""Classes by their names: ImageNet-1k, which the published class-conditional models were trained with.

The names come from timm, which the text encoders' library brings along; it is imported when a name is asked for.
"""

from __future__ import annotations

import difflib
import functools

from star_cli.errors import OptionError
from star_cli.generation.options import whole_number

IMAGENET_CLASSES = 1000
_MOST_NAMED = 5


def find_class(text: str, classes: int) -> int:
    """The number of a class.

    Args:
        text: the number, a name, or the beginning of a name that begins no other.
        classes: how many the model has; names are known for 1000, those of ImageNet-1k.
    Raises:
        OptionError: a number out of range, an unknown name, or one that several classes share.
    """
    wanted = " ".join(text.casefold().split())
    if wanted.lstrip("+-").isdecimal():
        return check_class(int(wanted), classes)
    if classes != IMAGENET_CLASSES:
        raise OptionError(
            f"--class {text!r}: names are known for the {IMAGENET_CLASSES} classes of ImageNet, not for {classes}",
            f"give a number from 0 to {classes - 1}",
        )
    names = _names()
    labels = names.get(wanted) or _beginning(wanted, names)
    if len(labels) == 1:
        return labels[0]
    if labels:
        raise OptionError(f"--class {text!r} may be {_listed(labels)}", "give the number of one of them")
    near = difflib.get_close_matches(wanted, names, n=_MOST_NAMED, cutoff=0.6)
    near += [name for name in names if wanted and wanted in name.split() and name not in near][:_MOST_NAMED]
    hint = f"near it: {', '.join(near[:_MOST_NAMED])}" if near else "give the number or a name of an ImageNet-1k class"
    raise OptionError(f"--class {text!r} is no class of this model", hint)


def check_class(label: int, classes: int) -> int:
    """The number itself, a plain one.

    Raises:
        OptionError: there is no such class.
    """
    number = whole_number(label)
    if number is None or not 0 <= number < classes:
        shown = label if number is None else number
        raise OptionError(f"--class must be a number from 0 to {classes - 1} or a name, not {shown!r}")
    return number


def _beginning(wanted: str, names: dict[str, list[int]]) -> list[int]:
    """Classes with a name that begins so."""
    if not wanted:
        return []
    return sorted({label for name, labels in names.items() if name.startswith(wanted) for label in labels})


def _listed(labels: list[int]) -> str:
    shown = ", ".join(f"{label} ({_descriptions()[label]})" for label in labels[:_MOST_NAMED])
    return shown if len(labels) <= _MOST_NAMED else f"{shown} and {len(labels) - _MOST_NAMED} more"


@functools.cache
def _descriptions() -> list[str]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [str(info.index_to_description(label)) for label in range(IMAGENET_CLASSES)]


@functools.cache
def _names() -> dict[str, list[int]]:
    """Classes of each name, whole descriptions and each of their synonyms, in small letters."""
    names: dict[str, list[int]] = {}
    for label, description in enumerate(_descriptions()):
        for name in dict.fromkeys([description, *description.split(",")]):
            names.setdefault(name.strip().casefold(), []).append(label)
    return names
