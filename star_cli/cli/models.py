"""`star models`: what can be drawn with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_cli.checkpoints.folder import ModelFolder
from star_cli.checkpoints.known import SHIPPED, list_models, shipped_root
from star_cli.cli import console, options
from star_cli.errors import ModelFolderError


def models(json: options.JsonOpt = False, debug: options.DebugOpt = False) -> None:
    """List shipped and cached models.

    Name, size, resolutions, licence, where it comes from and where it is: a table on a terminal, else one line a model
    with fields parted by tabs.
    """
    damaged: dict[Path, ModelFolderError] = {}
    rows = [_describe(folder) for folder in list_models(on_damaged=damaged.__setitem__)]
    for path, error in damaged.items():
        console.warn(f"left out: {path}: {error}")
    if not rows and not json:
        console.warn("there is no model: give one to --model, or train one")
    heads = ("name", "size", "resolutions", "licence", "source", "folder")
    console.print_rows(rows, heads, _in_words, json, _for_people)


def _describe(folder: ModelFolder) -> dict[str, Any]:
    return {
        "name": folder.path.name,
        "size_bytes": folder.size_bytes,
        "resolutions": sorted(folder.schedules),
        "licence": folder.licence,
        "source": "shipped" if folder.path.parent == shipped_root() else "cached",
        "is_default": folder.path.name == SHIPPED,
        "path": str(folder.path),
        "hash": folder.hash,
    }


def _in_words(row: Mapping[str, Any]) -> list[str]:
    size, resolutions = f"{row['size_bytes'] / 1e6:.1f} MB", ", ".join(map(str, row["resolutions"]))
    return [row["name"], size, resolutions, row["licence"], row["source"], row["path"]]


def _for_people(row: Mapping[str, Any]) -> list[str]:
    name, *rest = _in_words(row)
    return [f"{name} (default)" if row["is_default"] else name, *rest]
