"""`star config`: which defaults hold, and where each comes from."""

from __future__ import annotations

from typing import Any

from star_cli.cli import console, options
from star_cli.cli.defaults import KEYS, config_path, found_defaults, variable_of


def config(json: options.JsonOpt = False, debug: options.DebugOpt = False) -> None:
    """Show your own defaults, and where each was found.

    A flag wins, then a picture's recipe (--from-image), then the environment variable, then the config file, then the
    model's default.
    """
    path = config_path()
    found = {default.name: default for default in found_defaults()}
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "value": found[name].value if name in found else None,
            "source": found[name].source if name in found else None,
            "variable": variable_of(name),
        }
        for name in KEYS
    ]
    if json:
        console.print_json({"file": str(path), "exists": path.is_file(), "defaults": rows})
        return
    console.print_line(f"config file: {path}{'' if path.is_file() else ' (not there)'}")
    console.print_rows(rows, ("name", "value", "from", "variable"), _in_words, json=False)


def _in_words(row: Any) -> list[str]:
    is_set = row["source"] is not None
    return [row["name"], str(row["value"]) if is_set else "-", row["source"] or "-", row["variable"]]
