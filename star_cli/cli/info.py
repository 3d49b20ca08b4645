"""`star info`: the recipe that a picture carries."""

from __future__ import annotations

import json as json_format

from star_cli.cli import console, options
from star_cli.images import read_recipe


def info(image: options.ImageArg, json: options.JsonOpt = False, debug: options.DebugOpt = False) -> None:
    """Show the recipe in a picture.

    `star generate --from-image` repeats it.
    """
    recipe = read_recipe(image)
    if json:
        recipe.pop("path", None)  # a stranger's: ours is where the picture lies
        console.print_json({"path": str(image), **recipe})
        return
    for name, value in recipe.items():
        console.print_line(f"{name}: {value if isinstance(value, str) else json_format.dumps(value)}")
