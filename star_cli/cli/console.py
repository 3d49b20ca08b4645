"""Words out: results on standard output, one a line; errors, warnings and progress on standard error."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_cli.cli.errors import Failure, StdoutClosedError, shorten
from star_cli.errors import OutputError

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID
    from rich.table import Table
    from rich.text import Text

OnNamed = Callable[[str, int, int], None]

_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}  # control characters, half characters, line and paragraph separators
_DIRECTIONS = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}  # they reorder what stands around


def printable(text: str, keep: str = "") -> str:
    """The text on one line, with everything that would steer a terminal, but for `keep`, written as an escape."""
    return "".join(_escaped(one) if _steers(one) and one not in keep else one for one in text)


# -- standard output --------------------------------------------------------------------------------------------------


def print_path(path: Path) -> None:
    """One line with the path, in the bytes that the file system knows it by."""
    _print(os.fsencode(path))


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on one line, ASCII alone."""
    _print(json.dumps(values).encode("ascii"))


def print_line(text: str, keep: str = "") -> None:
    """One line of text that a command shows; `keep` are control characters that it means."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    _print(printable(text, keep).encode(encoding, errors="backslashreplace"))


def print_table(table: Table) -> None:
    """A table for people, as wide as their terminal."""
    from rich.console import Console

    output = io.StringIO()
    Console(file=output, width=shutil.get_terminal_size().columns).print(table)
    for line in output.getvalue().splitlines():
        print_line(line.rstrip())


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    heads: Sequence[str],
    in_words: Callable[[Mapping[str, Any]], list[str]],
    json: bool,
    for_people: Callable[[Mapping[str, Any]], list[str]] | None = None,
) -> None:
    """What a command lists: a table on a terminal, else one line a row with fields parted by tabs, or JSON objects.

    Args:
        rows: plain data.
        heads: of the table's columns.
        in_words: a row's fields.
        json: one JSON object a line, wherever it goes.
        for_people: a row's fields in the table, where they differ.
    """
    if json:
        for row in rows:
            print_json(row)
    elif is_terminal():
        from rich.table import Table
        from rich.text import Text

        table = Table(*heads, box=None, pad_edge=False)
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in (for_people or in_words)(row)))
        print_table(table)
    else:
        for row in rows:
            print_line("\t".join(in_words(row)), keep="\t")


def is_terminal() -> bool:
    """Do people read standard output?"""
    return sys.stdout is not None and sys.stdout.isatty()


def print_picture(data: bytes) -> None:
    """The bytes of a picture and nothing else.

    Raises:
        StdoutClosedError: the reader is gone.
        OutputError: writing failed.
    """
    if not _write(data):
        raise StdoutClosedError


def flush() -> None:
    """Bring out what typer wrote.

    Raises:
        OutputError: writing failed.
    """
    _write(b"")


def _print(line: bytes) -> None:
    """A reader who has seen enough (`| head -1`) is no failure: the work goes on, in silence."""
    _write(line + b"\n")


def _write(data: bytes) -> bool:
    """Whether somebody is still reading."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        _leave_stdout()
        if error.errno == errno.EPIPE:
            return False
        raise OutputError(f"cannot write to standard output: {error.strerror or error}") from error
    return True


def _leave_stdout() -> None:
    """Send what is still buffered, and all that follows, nowhere: Python would complain about it at exit."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


# -- standard error ---------------------------------------------------------------------------------------------------


def fail(failure: Failure) -> None:
    """An error, and what to do about it."""
    if failure.message:
        say(f"error: {shorten(failure.message)}")
    if failure.hint:
        say(f"hint: {shorten(failure.hint)}")


def warn(message: str, quiet: bool = False) -> None:
    """Something the user should know though the work goes on."""
    if not quiet:
        say(f"warning: {message}")


def say(text: str) -> None:
    """One line on standard error, if there is one."""
    with suppress(OSError, ValueError, AttributeError):
        encoding = sys.stderr.encoding or "utf-8"
        sys.stderr.write(printable(text).encode(encoding, errors="backslashreplace").decode(encoding) + "\n")
        sys.stderr.flush()


# -- progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def scales(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """A bar over the scales of one pass, moved by the callback it gives; before the first call it only shows life."""
    with bars(quiet) as bar:
        if bar is None:
            yield None
            return
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def files(quiet: bool = False) -> Iterator[OnNamed | None]:
    """A bar for each file that is read or written; the callback takes its name, bytes done, and bytes in all."""
    with _named_bars(quiet, 10**6, "MB") as on_bytes:
        yield on_bytes


@contextmanager
def counts(quiet: bool = False) -> Iterator[OnNamed | None]:
    """A bar for each kind of thing that is made; the callback takes its name, how many are done, and their total."""
    with _named_bars(quiet, 1, "") as on_count:
        yield on_count


@contextmanager
def _named_bars(quiet: bool, unit: int, note: str) -> Iterator[OnNamed | None]:
    with bars(quiet) as bar:
        if bar is None:
            yield None
            return
        tasks: dict[str, TaskID] = {}

        def on_named(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, note=note)
            bar.update(tasks[name], completed=done // unit, total=total // unit)

        yield on_named


@contextmanager
def bars(quiet: bool) -> Iterator[Progress | None]:
    """Bars of rich on standard error, gone when done; None when quiet or when nobody watches."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    # Standard output stays what it is: rich would lead it through standard error. Drawing the bars ten times a second,
    # as rich does, takes some percent of two cores from the pictures.
    display = {"transient": True, "redirect_stdout": False, "refresh_per_second": 3}
    with new_bars(console=Console(stderr=True), **display) as shown:
        yield shown


def new_bars(**display: Any) -> Progress:
    """The columns that every bar of ours has; a task brings a `note`. `display` is for rich, if they stand alone."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    class Note(TextColumn):
        """Gives way where the terminal is narrow, and never takes a second line: rich takes one away too many when it
        is stopped and goes on.
        """

        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        Note("{task.fields[note]}", markup=False, table_column=Column()),
        **display,
    )


def _steers(character: str) -> bool:
    return unicodedata.category(character) in _CONTROLS or character in _DIRECTIONS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
