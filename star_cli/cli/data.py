"""`star data`: what there is to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from star_cli.cli import console, options
from star_cli.cli.data_options import DataArg, refuse_endless
from star_cli.cli.data_scenes import scenes
from star_cli.cli.data_tokens import tokens
from star_cli.cli.errors import is_debug
from star_cli.cli.libraries import hushed

if TYPE_CHECKING:
    from star_cli.data.check import Report

app = typer.Typer(help="Pictures with captions, to learn from.", no_args_is_help=True)
app.command()(tokens)
app.command()(scenes)


@app.callback()
def data() -> None:
    """Pictures with captions, to learn from."""


@app.command()
def check(
    where: DataArg,
    image_column: options.ImageColumnOpt = None,
    caption_column: options.CaptionColumnOpt = None,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Read every picture and caption, and tell what there is.

    Counts, sizes, caption lengths, and each file that cannot be read with the reason. Exit code 1 when there is one.
    """
    from star_cli.data.check import check_source
    from star_cli.data.open import open_source

    refuse_endless(where)
    with hushed(debug or is_debug(())):
        source = open_source(where, image_column=image_column, caption_column=caption_column)
        with console.scales("checking", quiet) as on_picture:
            report = check_source(source, on_picture)
    if json:
        console.print_json(report.to_dict())
    else:
        _show(report)
    if report.uncaptioned:
        share = f"{report.uncaptioned:,} of {report.pictures:,}"
        console.warn(f"{share} pictures have no caption, first {report.uncaptioned_examples[0]}", quiet)
    if report.bad:
        raise typer.Exit(1)


def _show(report: Report) -> None:
    rows = [
        {"what": "pictures", "count": report.pictures},
        {"what": "without caption", "count": report.uncaptioned},
        {"what": "bad files", "count": len(report.bad)},
        {"what": "captions", "count": report.captions},
    ]
    spreads = {
        "width": report.width,
        "height": report.height,
        "width / height": report.aspect,
        "captions a picture": report.captions_each,
        "characters a caption": report.characters,
        "words a caption": report.words,
    }
    rows += [
        {"what": what, "min": spread.min, "median": spread.median, "max": spread.max}
        for what, spread in spreads.items()
        if spread is not None
    ]
    console.print_rows(rows, ("", "count", "min", "median", "max"), _in_words, json=False)
    bad = [{"name": file.name, "reason": file.reason} for file in report.bad]
    if bad:
        console.print_rows(bad, ("bad file", "why"), lambda row: [row["name"], row["reason"]], json=False)


def _in_words(row: Mapping[str, Any]) -> list[str]:
    return [row["what"], *(_number(row.get(key)) for key in ("count", "min", "median", "max"))]


def _number(value: float | None) -> str:
    """A whole number whole, others with two places."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else f"{value:.2f}"
