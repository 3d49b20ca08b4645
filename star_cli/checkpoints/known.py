"""Models known by name: those that ship with the package, and those in the user's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import star_cli
from star_cli.checkpoints.folder import CONFIG_FILE, ModelFolder, read_model_folder
from star_cli.checkpoints.published import PUBLISHED
from star_cli.errors import ModelFolderError, ModelNotFoundError
from star_cli.paths import expand_home

SHIPPED = "star-icons"
"""The model that ships, and is used when no other is named."""
SELF_SUFFICIENT = "star-shapes"
"""A smaller one beside it, whose training data the package draws by itself: nothing is fetched to go on with it."""


def shipped_root() -> Path:
    """Folder of the shipped models: inside an installed wheel, or beside the package in a checkout."""
    package = Path(star_cli.__file__).resolve().parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def cache_root() -> Path:
    """Folder of what the user downloaded or converted: `$STAR_CACHE`, else `~/.cache/star-cli`."""
    return expand_home(os.environ.get("STAR_CACHE") or "~/.cache/star-cli")


def published_path(name: str) -> Path:
    """Where a published model goes once it is converted, so that its name finds it."""
    return cache_root() / "models" / name


def model_paths() -> dict[str, Path]:
    """Folder of each model that can be named; a shipped one wins over a cached one of the same name."""
    found: dict[str, Path] = {}
    for root in (shipped_root(), cache_root() / "models"):
        for file in sorted(root.glob(f"*/{CONFIG_FILE}")):
            if not file.parent.name.startswith("."):
                found.setdefault(file.parent.name, file.parent)
    return found


def find_model(name_or_folder: str | Path) -> ModelFolder:
    """The model of this name, or in this folder. A name wins over a folder; `./NAME` is the folder.

    Raises:
        ModelNotFoundError: neither.
        ModelFolderError: the folder is incomplete or damaged.
    """
    return read_model_folder(find_model_path(name_or_folder))


def find_model_path(name_or_folder: str | Path) -> Path:
    """Where the model of this name is; what is in the folder is not looked at.

    Raises:
        ModelNotFoundError: no such name, and no such folder.
    """
    known = model_paths()
    if isinstance(name_or_folder, str) and name_or_folder in known:
        return known[name_or_folder]
    path = expand_home(name_or_folder)
    if str(name_or_folder) and path.is_dir():
        return path
    if path.is_file():
        raise ModelNotFoundError(
            f"model {name_or_folder} is a file, not a model folder", "give the folder that holds it"
        )
    if name_or_folder in PUBLISHED:
        raise ModelNotFoundError(
            f"the weights of {name_or_folder} are not here yet", f"run `star weights download {name_or_folder}`"
        )
    raise ModelNotFoundError(
        f"no model is called {str(name_or_folder)!r}, and there is no such folder; known: {', '.join(known) or 'none'}",
        "see `star models`, or give the path of a model folder",
    )


def list_models(on_damaged: Callable[[Path, ModelFolderError], None] | None = None) -> list[ModelFolder]:
    """Shipped models, then cached ones.

    Args:
        on_damaged: told of each folder that cannot be read, which is then left out; when None it is raised.
    """
    models = []
    for path in model_paths().values():
        try:
            models.append(read_model_folder(path))
        except ModelFolderError as error:
            if on_damaged is None:
                raise
            on_damaged(path, error)
    return models
