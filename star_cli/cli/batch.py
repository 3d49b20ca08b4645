"""`star batch`: draw all prompts of a file, and only what is missing when called again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from star_cli.asked import checked_dtype
from star_cli.batch.plan import Plan, name_key, read_plan
from star_cli.batch.rows import KINDS, InputKind, kind_of
from star_cli.batch.template import DEFAULT_TEMPLATE, NameTemplate
from star_cli.checkpoints.known import SHIPPED, find_model
from star_cli.cli import batch_options, console, options
from star_cli.cli.batch_panel import batch_panel
from star_cli.cli.batch_report import conclude, tell
from star_cli.cli.defaults import user_defaults
from star_cli.cli.errors import is_debug, shorten
from star_cli.cli.libraries import hushed
from star_cli.cli.stopping import Stopping
from star_cli.errors import BatchInputError, OptionError, OutputPathError, StarError
from star_cli.images import check_folder, check_target, check_writable

if TYPE_CHECKING:
    from star_cli.batch.events import OnEvent, Summary
    from star_cli.batch.folder import BatchFolder
    from star_cli.batch.selection import Policy


def batch(
    file: batch_options.InputArg,
    out: batch_options.DirOpt = None,
    template: batch_options.TemplateOpt = None,
    input_format: batch_options.KindOpt = None,
    res: options.ResOpt = None,
    model: options.ModelOpt = None,
    seed: options.SeedOpt = None,
    num: options.NumOpt = None,
    guidance: options.GuidanceOpt = None,
    top_k: options.TopKOpt = None,
    top_p: options.TopPOpt = None,
    temperature: options.TemperatureOpt = None,
    smooth: options.SmoothOpt = None,
    stable: options.StableOpt = None,
    negative: options.NegativeOpt = None,
    format: options.FormatOpt = None,  # noqa: A002
    device: options.DeviceOpt = None,
    dtype: options.DtypeOpt = None,
    quantize: options.QuantizeOpt = None,
    compat: options.CompatOpt = None,
    speed: options.SpeedOpt = None,
    batch_size: batch_options.BatchSizeOpt = None,
    devices: batch_options.DevicesOpt = None,
    shard: batch_options.ShardOpt = None,
    engine: batch_options.EngineOpt = None,
    redo: batch_options.RedoOpt = False,
    retry_failed: batch_options.RetryOpt = False,
    max_failures: batch_options.MaxFailuresOpt = None,
    contact_sheet: batch_options.ContactSheetOpt = None,
    dry_run: batch_options.DryRunOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Draw all prompts of a file, and write the paths of the images.

    Call it again after a crash, or with a longer file: only what is missing or damaged is drawn. Each image equals the
    one that `star generate` draws alone. Exit codes: 0 all done, 1 some failed, 2 the input is bad and nothing was
    drawn, 130 stopped by Ctrl-C or SIGTERM.
    """
    given = {
        "model": model,
        "res": res,
        "seed": seed,
        "num": num,
        "negative": negative,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "guidance": guidance,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "smooth": smooth,
        "stable": stable,
        "compat": compat,
        "speed": speed,
    }
    policy = _policy(batch_size, redo, retry_failed, max_failures, shard)
    if devices is not None and (device is not None or engine == "ray"):
        raise OptionError("--devices stands alone", "leave out --device and --engine")
    values = {"device": "auto", "dtype": "auto", **user_defaults()}
    usual = values.pop("format", "png")
    values |= {name: value for name, value in given.items() if value is not None}
    values["dtype"] = checked_dtype(values["dtype"], values.get("compat"))
    names = NameTemplate(DEFAULT_TEMPLATE if template is None else template, format, usual)
    plan = _read(file, input_format, values, names)
    where = _folder(out, file)
    check_folder(where)
    if contact_sheet is not None:
        _check_sheet(contact_sheet, where, plan, policy)
    if dry_run:
        from star_cli.cli.batch_dry import list_jobs

        list_jobs(plan, where, policy, json, quiet)
        return
    with hushed(debug or is_debug(())):
        work = _workers(plan, values, policy, devices, engine)
        summary = _run(work, plan, where, policy, json, quiet)
    has_sheet = True
    if contact_sheet is not None and not summary.is_stopped:
        try:
            _make_sheet(plan, where, policy, contact_sheet, quiet)
        except StarError as error:  # the images are there: first what became of them
            console.say(f"error: no contact sheet: {error}")
            has_sheet = False
    conclude(summary, json, quiet)
    if not has_sheet:
        raise typer.Exit(1)


def _folder(out: str | None, file: str) -> Path:
    if out is None:
        return Path("batch" if file == "-" else Path(file).stem)
    if not out.strip():
        raise OptionError("--out is empty", "give a folder")
    return Path(out)


def _policy(
    batch_size: int | None, redo: bool, retry_failed: bool, max_failures: int | None, shard: str | None
) -> Policy:
    from star_cli.batch.selection import Policy

    return Policy(
        batch_size=batch_size or None,
        redo=redo,
        retry_failed=retry_failed,
        max_failures=max_failures,
        shard=batch_options.shard(shard) if shard is not None else (1, 1),
    )


def _read(file: str, kind: InputKind | None, values: Mapping[str, Any], names: NameTemplate) -> Plan:
    """The plan; whatever is wrong with the input is told line by line.

    Raises:
        BatchInputError: it cannot be read, or not all of it can be drawn.
    """
    folder = find_model(values.get("model", SHIPPED))
    try:
        if file == "-":
            if sys.stdin is None:
                raise BatchInputError("standard input is closed", "give a file")
            return read_plan(sys.stdin.buffer, kind or "text", folder, values, names)
        with Path(file).open("rb") as lines:
            return read_plan(lines, kind or kind_of(Path(file)), folder, values, names)
    except BatchInputError as error:
        for line, message in error.problems:
            console.say(f"{'stdin' if file == '-' else file}:{line}: {shorten(message, 300)}")
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        words = getattr(error, "strerror", None) or str(error)
        hint = f"give a file of prompts ({', '.join(KINDS)}, or text), or -"
        raise BatchInputError(f"{file}: {words}", hint) from error


Work = Callable[["BatchFolder", "OnEvent", Callable[[Callable[[], None]], None]], "Summary"]
"""Does a batch in a folder; tells events; hands out, once it can be stopped, what stops it."""


def _workers(plan: Plan, values: Mapping[str, Any], policy: Policy, devices: str | None, engine: str | None) -> Work:
    """What will draw: this process, one process a GPU, or a Ray cluster. The model is loaded when it is needed."""
    device, dtype, quantize = str(values["device"]), str(values["dtype"]), values.get("quantize")
    if engine == "ray":
        from star_cli.batch.ray_engine import run_on_ray

        return partial(run_on_ray, plan, policy, device, dtype, quantize)
    if devices is not None:
        from star_cli.batch.workers import find_devices, run_on_devices

        return partial(run_on_devices, plan, policy, find_devices(devices), dtype, quantize)

    def here(folder: BatchFolder, on_event: OnEvent, on_ready: Callable[[Callable[[], None]], None]) -> Summary:
        from star_cli.batch.runner import BatchRunner
        from star_cli.memory import keep_pages
        from star_cli.pipeline import StarPipeline

        keep_pages()
        pipe = StarPipeline.from_pretrained(plan.folder.path, device, dtype, quantize)
        runner = BatchRunner(pipe, plan, folder, policy)
        on_ready(runner.stop)
        return runner.run(on_event)

    return here


def _run(work: Work, plan: Plan, where: Path, policy: Policy, json: bool, quiet: bool) -> Summary:
    from star_cli.batch.folder import BatchFolder

    jobs = policy.count(plan)
    if json:
        console.print_json({"event": "start", "jobs": jobs, "folder": str(where)})
    with Stopping() as stopping, BatchFolder(where) as folder, batch_panel(jobs, quiet) as panel:
        for message in folder.messages:
            console.warn(message, quiet)
        return work(folder, lambda event: tell(event, panel, json, quiet), stopping.on_ready)


# -- contact sheet ----------------------------------------------------------------------------------------------------


def _check_sheet(path: Path, where: Path, plan: Plan, policy: Policy) -> None:
    """Before anything is drawn: will the sheet find its place? An older sheet may go, another picture may not."""
    from star_cli.batch.sheet import MOST, Layout, check_size, is_sheet

    check_size(min(policy.count(plan), MOST), Layout(), path)
    _check_no_image(path, where, plan)
    if path.parent == where and not where.exists():
        return  # the batch makes its folder
    check_target(path, overwrite=is_sheet(path))
    check_writable(Path(os.path.realpath(path)).parent)


def _check_no_image(path: Path, where: Path, plan: Plan) -> None:
    """The sheet may lie among the images, but not in the place of one, drawn or not."""
    from star_cli.batch.folder import BatchFolder

    inside = Path(os.path.realpath(where))
    places = (Path(os.path.realpath(path)), Path(os.path.realpath(path.parent), path.name))  # a link, and its end
    own = {name_key(one.relative_to(inside).as_posix()) for one in places if one.is_relative_to(inside)}
    if not own:
        return
    folder = BatchFolder(where)
    folder.journal.refresh()
    if own & set(folder.journal.owners) or any(name_key(folder.place(job)[0].file) in own for job in plan.jobs()):
        raise OutputPathError(f"{path} is the place of an image of this batch", "give the sheet another name")


def _make_sheet(plan: Plan, where: Path, policy: Policy, out: Path, quiet: bool) -> None:
    """Of what is there, in the order of the input."""
    from star_cli.batch.folder import BatchFolder
    from star_cli.batch.sheet import MOST, Layout, is_sheet, write_sheet

    journal = BatchFolder(where).journal
    journal.refresh()
    pictures = []
    for job in plan.jobs():
        record = journal.records.get(job.hash)
        if policy.has(job) and record is not None and record.status == "done":
            pictures.append(where / record.file)
        if len(pictures) > MOST:
            break
    if not pictures:
        console.warn("no images, no contact sheet", quiet)
        return
    if len(pictures) > MOST:
        console.warn(f"the contact sheet holds the first {MOST:,} images", quiet)
    for path, error in write_sheet(pictures[:MOST], out, Layout(), overwrite=is_sheet(out)):
        console.warn(f"{path} cannot be read: {error}", quiet)
