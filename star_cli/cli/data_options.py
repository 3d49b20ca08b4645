"""What commands that read a whole set of pictures share: the word for where it is."""

from __future__ import annotations

from typing import Annotated

import typer

from star_cli.errors import OptionError

DataArg = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        show_default=False,
        help="A folder of pictures, tar shards (data/{000..010}.tar), pipe:COMMAND, hf:NAME[:SPLIT], shapes[:COUNT].",
    ),
]


def refuse_endless(where: str) -> None:
    """Scenes of icons have no end that a command could wait for.

    Raises:
        OptionError: these are such scenes.
    """
    from star_cli.data.open import ICONS, is_endless

    if is_endless(where):
        raise OptionError(
            f"{where}: scenes of icons are composed without end, only training takes them",
            "`star data scenes` shows some, or writes a folder of them to give here "
            f"(a folder of yours called {ICONS} is ./{ICONS})",
        )
