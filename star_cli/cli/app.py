"""The command `star`: what commands there are, and how a run of one ends."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from star_cli import __version__
from star_cli.cli import console
from star_cli.cli.batch import batch
from star_cli.cli.bench import bench
from star_cli.cli.config import config
from star_cli.cli.data import app as data
from star_cli.cli.doctor import doctor
from star_cli.cli.errors import INTERRUPTED, TERMINATED, TerminatedError, explain, is_debug
from star_cli.cli.finetune import finetune
from star_cli.cli.generate import generate
from star_cli.cli.info import info
from star_cli.cli.man import man
from star_cli.cli.models import models
from star_cli.cli.sheet import sheet
from star_cli.cli.train import app as train
from star_cli.cli.weights import app as weights
from star_cli.errors import OutputError


class Commands(TyperGroup):
    """The group of all commands. Ends every run in our own words and exit codes, usage errors included."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run one command line."""
        arguments = sys.argv[1:] if args is None else args
        call = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        return sys.exit(_end(call, is_debug(arguments))) if standalone_mode else call()


# Plain help: rich's boxes would double the time that `star --help` takes.
app = typer.Typer(
    name="star", cls=Commands, rich_markup_mode=None, pretty_exceptions_enable=False, invoke_without_command=True
)

# One line a command. None of these modules imports torch or transformers; commands do, once they run.
app.command()(generate)
app.command()(batch)
app.command()(sheet)
app.command()(info)
app.command()(models)
app.command()(doctor)
app.command()(bench)
app.command()(finetune)
app.add_typer(data, name="data")
app.command()(config)
app.command()(man)
app.add_typer(train, name="train")
app.add_typer(weights, name="weights")


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print_line(f"star {__version__}")
        raise typer.Exit


@app.callback()
def star(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Draw pictures from words with STAR, scale by scale.

    Exit codes: 0 done, 2 wrong usage or bad input, 1 a failure while working, 130 stopped by Ctrl-C.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the installed command.

    An impatient second Ctrl-C does not change how an interrupted run ends: while the interpreter shuts down, the
    signal would otherwise kill the process before it has given its exit code.
    """
    try:
        try:
            app(prog_name="star")
        except SystemExit as end:
            if end.code in (INTERRUPTED, TERMINATED):
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
            raise
    except KeyboardInterrupt:  # it came while the run said its last words, or between them and here
        console.say("interrupted")
        sys.exit(INTERRUPTED)


def _end(call: Callable[[], Any], debug: bool) -> int:
    """Run a command line and give its exit code; whatever went wrong is told on standard error."""
    try:
        with _terminable():
            result = call()
            console.flush()
        code = result if isinstance(result, int) else 0  # typer gives back the code of an Exit
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            console.say("interrupted")
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        code = 0  # typer's answer to a reader of its help who has seen enough: no failure, as in `console`
    except (KeyboardInterrupt, typer.Abort):
        console.say("interrupted")
        code = INTERRUPTED
    except TerminatedError:
        console.say("terminated")
        code = TERMINATED
    except Exception as error:
        if debug:
            for line in traceback.format_exc().splitlines():
                console.say(line)
        failure = explain(_of_stdout(error))
        console.fail(failure)
        code = failure.exit_code
    return code


def _of_stdout(error: Exception) -> Exception:
    """What typer could not write, its help, is an error that does not say where it was: standard output knows."""
    if isinstance(error, OSError) and error.filename is None:
        try:
            console.flush()
        except OutputError as told:
            return told
    return error


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that nothing half-written is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
