"""`star data scenes`: composed pictures with captions, to look at or to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from star_cli.cli import console, options
from star_cli.errors import OptionError

OutOpt = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", show_default=False, help="Folder for pictures and metadata.jsonl: empty or new."
    ),
]
SheetOpt = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="FILE", show_default=False, help="One PNG with the first 64 scenes and captions."),
]
CountOpt = Annotated[int, typer.Option("--count", parser=options.whole_number, metavar="N", help="Scenes to write.")]
ResOpt = Annotated[
    int, typer.Option("--res", parser=options.whole_number, metavar="PIXELS", help="Side of the pictures.")
]
SeedOpt = Annotated[
    int, typer.Option("--seed", parser=options.whole_number, metavar="N", help="Scene i has the seed N + i.")
]
ObjectsOpt = Annotated[
    int,
    typer.Option(
        "--objects",
        parser=options.whole_number,
        metavar="N",
        help="How many kinds of things, the most useful first; 0: all.",
    ),
]
MixOpt = Annotated[
    Literal["simple", "grounds", "usual", "composed", "full"],
    typer.Option("--mix", help="From one thing on a plain colour to groups on landscapes."),
]
HeldOutOpt = Annotated[
    bool,
    typer.Option(
        "--held-out", help="Only scenes with a pair of things, or thing and ground, that training never sees."
    ),
]
IconsOpt = Annotated[
    Path | None,
    typer.Option(
        "--icons",
        metavar="PATH",
        show_default=False,
        help="The icon package (.tgz), its icons.json, or their folder. Default: fetched with npm once.",
    ),
]


def scenes(
    out: OutOpt = None,
    sheet: SheetOpt = None,
    count: CountOpt = 1000,
    res: ResOpt = 256,
    seed: SeedOpt = 0,
    objects: ObjectsOpt = 400,
    mix: MixOpt = "full",
    held_out: HeldOutOpt = False,
    icons: IconsOpt = None,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Compose pictures of everyday things with captions, and write their folder's path.

    One to four icons of an openly licensed set on plain and drawn backgrounds, captioned in varied English; star-icons
    learned from mixes of such scenes. The icons are fetched on first use and kept in the cache.
    """
    if out is None and sheet is None:
        raise OptionError("nothing to write: neither --out nor --sheet", "give --out DIR, --sheet FILE, or both")
    if count < 1 or not 16 <= res <= 2048 or seed < 0:
        raise OptionError("scenes need --count of at least 1, --res from 16 to 2048, --seed of at least 0")
    from star_cli.data.icons.catalogue import open_catalogue
    from star_cli.data.icons.export import check_sheet, write_scenes, write_sheet
    from star_cli.data.icons.scenes import HELD_OUT_SEED
    from star_cli.data.icons.source import IconScenes
    from star_cli.data.place import check_new_folder

    if out is not None:
        check_new_folder(out)
    if sheet is not None:
        check_sheet(sheet)
    if seed + count > HELD_OUT_SEED:
        raise OptionError(f"seeds go up to {HELD_OUT_SEED - 1}", "use --held-out for scenes that training never sees")
    with console.scales("icons", quiet) as on_icon:
        catalogue = open_catalogue(icons, objects, None if quiet else console.say, on_icon)
    source = IconScenes(catalogue, count, seed + (HELD_OUT_SEED if held_out else 0), mix)
    if out is not None:
        if count > len(catalogue.objects):
            with console.scales("rendering", quiet) as on_icon:
                source.prepare(res, on_icon)
        with console.scales("scenes", quiet) as on_picture:
            console.print_path(write_scenes(source, out, res, on_picture))
    if sheet is not None:
        write_sheet(source, sheet)
        console.print_path(sheet)
