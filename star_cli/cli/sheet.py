"""`star sheet`: a captioned grid of pictures that are there."""

from __future__ import annotations

from pathlib import Path

from star_cli.batch.sheet import Layout, find_pictures, write_sheet
from star_cli.cli import batch_options, console, options
from star_cli.cli.output import USE_FORCE
from star_cli.images import check_target, format_of


def sheet(
    pictures: batch_options.PicturesArg,
    out: batch_options.SheetOutOpt = Path("sheet.png"),
    columns: batch_options.ColumnsOpt = None,
    cell: batch_options.CellOpt = Layout.cell,
    captions: batch_options.CaptionsOpt = True,
    force: batch_options.ForceOpt = False,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Make a contact sheet of pictures: small, in a grid, each with its prompt and seed.

    Pictures without a recipe are captioned with their names.
    """
    layout = Layout(columns, cell, captions)
    format_of(out)
    check_target(out, overwrite=force, if_exists=USE_FORCE)
    found = [path for path in find_pictures(pictures) if path.resolve() != out.resolve()]
    for path, error in write_sheet(found, out, layout, overwrite=force):
        console.warn(f"{path} cannot be read: {error}", quiet)
    console.print_path(out)
