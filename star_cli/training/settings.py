"""A resumed run's settings against those of the run it goes on with: what changed, and whether it may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from star_cli.errors import TrainingError

# What the state of the optimisers and the average does not depend on; a run may want another rate, or more memory.
FREE = frozenset(
    f"loop.{name}"
    for name in (
        *("steps", "learning_rate", "warmup_steps", "decay", "final_rate", "clip_norm", "max_skipped"),
        *("precision", "accumulate", "checkpointing", "compile", "device", "parallel", "workers"),
        *("save_every", "keep_last", "keep_best", "preview_every", "evaluate_every", "log_every", "track"),
    )
)


def _is_free(key: str, before: Any, after: Any) -> bool:
    """A rate of 0 stands for no Muon at all: from or to it, the optimisers are others."""
    return key in FREE or (key == "loop.matrix_learning_rate" and bool(before) and bool(after))


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed, in words, one setting each; settings that only one of the two knows are left out.

    Raises:
        TrainingError: something changed that a run cannot change on its way.
    """
    free: list[str] = []
    fixed: list[str] = []
    for key, before, after in _changes(old, new, ""):
        changed = free if _is_free(key, before, after) else fixed
        changed.append(f"{key} {_word(before)} -> {_word(after)}")
    if fixed:
        raise TrainingError(
            f"this run was begun with other settings; what changed: {', '.join(fixed)}",
            "set them back to go on, or train in another --run folder",
        )
    return free


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    for key, before in old.items():
        if key not in new:
            continue
        after = new[key]
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changes(before, after, f"{prefix}{key}.")
        elif _listed(before) != _listed(after):
            yield f"{prefix}{key}", before, after


def _listed(value: Any) -> Any:
    """JSON knows no tuples."""
    if isinstance(value, list | tuple):
        return [_listed(one) for one in value]
    return value


def _word(value: Any) -> str:
    """A value as it stands in a configuration file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_word, value))}]"
    return str(value) if value != "" else '""'
