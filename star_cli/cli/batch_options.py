"""Flags of `star batch` and `star sheet`; those that `star generate` has, too, are in `options.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from star_cli.batch.template import DEFAULT_TEMPLATE
from star_cli.cli.options import whole_number
from star_cli.errors import OptionError

Kind = Literal["text", "jsonl", "csv", "tsv"]
Engine = Literal["here", "ray"]


def batch_size(text: str) -> int:
    """Reads a flag's value; 0 stands for auto."""
    if text == "auto":
        return 0
    value = whole_number(text)
    if value < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a whole number of at least 1")
    return value


def shard(text: str) -> tuple[int, int]:
    """Reads I/N.

    Raises:
        OptionError: it is written otherwise.
    """
    part, slash, parts = text.partition("/")
    if not slash or not part.isdecimal() or not parts.isdecimal():
        raise OptionError(f"--shard must be I/N, not {text}", "write it like 2/8")
    return int(part), int(parts)


InputArg = Annotated[
    str,
    typer.Argument(metavar="FILE|-", show_default=False, help="Prompts, one a line; JSON lines; a table; - is stdin."),
]
KindOpt = Annotated[
    Kind | None, typer.Option("--input-format", help="Of the input. Default: as its name ends, else text.")
]
DirOpt = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR", help="Folder of images and journal. Default: called as the input file."),
]
TemplateOpt = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="NAME",
        help="Name of a file; {index}, {line}, {number}, {seed}, {res}, {slug}, {model} and {hash} are filled in. "
        f"Default: {DEFAULT_TEMPLATE}.",
    ),
]
BatchSizeOpt = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        parser=batch_size,
        metavar="N|auto",
        help="Images drawn in one pass. Default: auto, as many as pay and memory allows.",
    ),
]
DevicesOpt = Annotated[
    str | None,
    typer.Option("--devices", metavar="LIST|all", help="Several GPUs of this machine, a process each: 0,1 or all."),
]
ShardOpt = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only the I-th of N parts of the jobs, for schedulers.")
]
EngineOpt = Annotated[
    Engine | None, typer.Option("--engine", help="ray: draw on a Ray cluster (pip install 'star-cli[ray]').")
]
RedoOpt = Annotated[bool, typer.Option("--redo", help="Draw again what is done.")]
RetryOpt = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed in an earlier run.")]
MaxFailuresOpt = Annotated[
    int | None,
    typer.Option("--max-failures", parser=whole_number, metavar="N", help="Stop after N failures. Default: never."),
]
DryRunOpt = Annotated[bool, typer.Option("--dry-run", help="List jobs and their files; draw nothing.")]
ContactSheetOpt = Annotated[
    Path | None,
    typer.Option("--contact-sheet", metavar="FILE", help="When all is done, a captioned grid of the images."),
]
ColumnsOpt = Annotated[
    int | None,
    typer.Option("--columns", parser=whole_number, metavar="N", help="Pictures in a row. Default: like rows."),
]
CellOpt = Annotated[
    int, typer.Option("--cell", parser=whole_number, metavar="PIXELS", help="Side of a picture on the sheet.")
]
CaptionsOpt = Annotated[bool, typer.Option("--captions/--no-captions", help="Prompt and seed below each picture.")]
PicturesArg = Annotated[
    list[Path], typer.Argument(metavar="DIR|IMAGE...", show_default=False, help="Pictures, or folders of them.")
]
SheetOutOpt = Annotated[Path, typer.Option("--out", metavar="FILE", help="The sheet: .png, .webp or .jpg.")]
ForceOpt = Annotated[bool, typer.Option("--force", help="Overwrite the sheet.")]
