"""Is a model folder still what it was when it was written? Every byte is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from star_cli.checkpoints.folder import TRANSFORMER, VQVAE, ModelFolder, text_files
from star_cli.errors import ModelFolderError


@dataclass(frozen=True)
class Verified:
    """What was found of one file."""

    file: str
    """By its path inside the folder."""
    problem: str | None = None
    """What was found and what was expected; None when all is well."""


def verify_folder(folder: ModelFolder) -> Iterator[Verified]:
    """Check each file the config lists, one after another, then that the tensors are those of its model.

    Args:
        folder: from `read_model_config`, which does not yet ask whether the files are there.
    """
    damaged = set()
    for name, record in folder.files.items():
        problem = _problem_of(partial(record.check, folder.path / name))
        if problem:
            damaged.add(name)
        yield Verified(name, problem)
    for name in text_files(folder.path):
        if name not in folder.files:
            yield Verified(name, f"{name} is in the folder, but not among the files of the config")
    for stem in (TRANSFORMER, VQVAE):
        paths = list(folder.weights(stem))
        if not damaged & {path.name for path in paths} and (problem := _other_model(folder, stem, paths)):
            yield Verified(stem, problem)


def _other_model(folder: ModelFolder, stem: str, paths: list[Path]) -> str | None:
    from star_cli.checkpoints.tensors import check_headers, outline_of

    outline = outline_of(folder.transformer if stem == TRANSFORMER else folder.vqvae)
    return _problem_of(lambda: check_headers(paths, outline))


def _problem_of(check: Callable[[], None]) -> str | None:
    try:
        check()
    except ModelFolderError as error:
        return str(error)
    return None
