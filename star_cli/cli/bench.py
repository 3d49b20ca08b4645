"""`star bench`: how fast a model draws here, where the time goes, and how near that is to what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from star_cli.asked import checked_numbers
from star_cli.cli import console, options
from star_cli.cli.defaults import user_defaults
from star_cli.cli.errors import is_debug
from star_cli.cli.libraries import hushed
from star_cli.errors import OptionError

ShapeOpt = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="NAME",
        help="A published size with random weights and random text features, nothing to download: star-256-d16, "
        "star-512-d30, star-1024-d30, var-256-d16, var-512-d36 or another depth.",
    ),
]
BatchSizesOpt = Annotated[
    str, typer.Option("--batch-sizes", metavar="N,N...", help="Pictures of a pass; parts are timed at the first.")
]
RepeatOpt = Annotated[
    int | None,
    typer.Option("--repeat", parser=options.whole_number, metavar="N", help="Passes of each kind. Default: 5."),
]
ThreadsOpt = Annotated[
    int | None,
    typer.Option("--threads", parser=options.whole_number, metavar="N", help="Of the CPU. Default: torch's choice."),
]
ColdOpt = Annotated[
    bool | None,
    typer.Option(
        "--cold/--no-cold",
        show_default=False,
        help="Time fresh processes, from start to first picture. Default: with a model, unless --quick.",
    ),
]
CompareOpt = Annotated[
    Path | None, typer.Option("--compare", metavar="FILE", help="What an earlier --json wrote: how much faster is it?")
]
QuickOpt = Annotated[bool, typer.Option("--quick", help="One repeat and small sizes: to try it, not to quote it.")]


def bench(
    model: options.ModelOpt = None,
    shape: ShapeOpt = None,
    res: options.ResOpt = None,
    batch_sizes: BatchSizesOpt = "1",
    repeat: RepeatOpt = None,
    threads: ThreadsOpt = None,
    device: options.DeviceOpt = None,
    dtype: options.DtypeOpt = None,
    quantize: options.QuantizeOpt = None,
    speed: options.SpeedOpt = None,
    cold: ColdOpt = None,
    compare: CompareOpt = None,
    quick: QuickOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Measure how fast a model draws, part by part, against the machine's floor.

    Whole pictures, from the prompt to the bytes of the file: cold and warm, over batch sizes, with peak memory. Then
    once more with clocks around the parts, beside the operations and bytes that each asks for and the best rates
    that this machine was seen to give. Nothing else should run meanwhile.
    """
    if model is not None and shape is not None:
        raise OptionError("--model and --shape are given", "give one of them")
    if shape is not None and cold:
        raise OptionError("--shape has no weights on disk, so there is no cold start", "leave --cold out")
    sizes = _batch_sizes(batch_sizes)
    for name, value in (("repeat", repeat), ("threads", threads)):
        if value is not None and value < 1:
            raise OptionError(f"--{name} must be a whole number of at least 1, not {value}")
    usual = user_defaults()
    if res is None and shape is None:  # a shape has its own resolution
        res = usual.get("res")
    checked_numbers({} if res is None else {"res": res})
    # A new option of loading or of the draw is one line in one of these.
    loading = {"device": device or usual.get("device"), "dtype": dtype or usual.get("dtype"), "quantize": quantize}
    drawing: dict[str, Any] = {"speed": speed or usual.get("speed")}
    with hushed(debug or is_debug(())):
        from star_cli.evaluation.speed import Bench, Effort, run_bench
        from star_cli.evaluation.speed_report import compare as compare_reports
        from star_cli.evaluation.speed_report import read_report
        from star_cli.evaluation.speed_subject import Precision
        from star_cli.memory import keep_pages

        keep_pages()  # as the commands do that draw
        before = None if compare is None else read_report(compare)
        effort = Effort.quick() if quick else Effort()
        effort = replace(effort, repeat=repeat or effort.repeat)
        if cold is not None:
            effort = replace(effort, cold=effort.repeat if cold else 0)
        measured = Bench(
            model=(model or usual.get("model")) if shape is None else None,
            shape=shape,
            res=res,
            batch_sizes=sizes,
            threads=threads,
            precision=Precision(**{name: value for name, value in loading.items() if value is not None}),
            sampling={name: value for name, value in drawing.items() if value is not None},
            effort=effort,
        )
        with _steps(quiet) as on_step:
            report = run_bench(measured, on_step)
        if before is not None:
            report["compare"] = compare_reports(before, report)
        _show(report, json)


def _batch_sizes(text: str) -> tuple[int, ...]:
    """Reads "1,2,4"; each size once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 0 < int(part) < 2**16 for part in parts):
        raise OptionError(f"--batch-sizes must be whole numbers of at least 1, not {text!r}", "use --batch-sizes 1,2,4")
    return tuple(dict.fromkeys(map(int, parts)))


@contextmanager
def _steps(quiet: bool) -> Iterator[Any]:
    """Tells on standard error what is measured: a bar's title on a terminal."""
    with console.bars(quiet) as bar:
        if bar is None:
            yield lambda name: None
            return
        task = bar.add_task("measuring", total=None, note="")
        yield lambda name: bar.update(task, description=f"measuring {name}")


def _show(report: Mapping[str, Any], json: bool) -> None:
    """One JSON object; else tables on a terminal, or lines of which the first field names the table."""
    if json:
        console.print_json(report)
        return
    from star_cli.evaluation.speed_report import tables

    for number, table in enumerate(tables(report)):
        if number and console.is_terminal():
            console.print_line("")
        console.print_rows(
            [{"title": table.title, "cells": row} for row in table.rows],
            table.heads,
            lambda row: [row["title"], *row["cells"]],
            json=False,
            for_people=lambda row: list(row["cells"]),
        )
