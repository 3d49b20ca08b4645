"""`star models`: what can be drawn with."""

from __future__ import annotations

from collections.abc import Sequence
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
    damaged: list[ModelFolderError] = []
    rows = [_describe(folder) for folder in list_models(on_damaged=damaged.append)]
    for error in damaged:
        console.warn(f"left out: {error}")
    if not rows and not json:
        console.warn("there is no model: give one to --model, or train one")
    if json:
        for row in rows:
            console.print_json(row)
    elif console.is_terminal():
        _print_table(rows)
    else:
        for row in rows:
            console.print_line("\t".join(_in_words(row)), keep="\t")


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


def _in_words(row: dict[str, Any]) -> list[str]:
    size, resolutions = f"{row['size_bytes'] / 1e6:.1f} MB", ", ".join(map(str, row["resolutions"]))
    return [row["name"], size, resolutions, row["licence"], row["source"], row["path"]]


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "size", "resolutions", "licence", "source", "folder", box=None, pad_edge=False)
    for row in rows:
        cells = _in_words(row)
        cells[0] += " (default)" if row["is_default"] else ""
        table.add_row(*(Text(console.printable(cell)) for cell in cells))
    console.print_table(table)
