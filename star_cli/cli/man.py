"""`star man`: the manual page, made of the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from star_cli import __version__
from star_cli.cli import console, options
from star_cli.cli.defaults import KEYS, variable_of

_FILES = (
    ("~/.config/star/config.toml", "Your defaults; see star config."),
    ("~/.cache/star-cli/", "Downloaded and converted models."),
)
_MORE_VARIABLES = (
    ("STAR_CONFIG", "The config file, in place of the usual one."),
    ("STAR_CACHE", "Folder of downloaded and converted models."),
    ("STAR_DEBUG", "1 shows tracebacks and the libraries' warnings."),
    ("STAR_KEEP_PAGES", "0 leaves the memory allocator alone."),
    (
        "STAR_CUDA_GRAPHS",
        "1 plays the blocks of a scale as one CUDA graph from the second pass on; compiled: after compiling them.",
    ),
    ("NO_COLOR", "Set to anything: no colours."),
)
_EXITS = (
    ("0", "Done."),
    ("1", "A failure while working; of a batch, some images failed."),
    ("2", "Wrong usage or bad input; nothing was done."),
    ("130", "Stopped by Ctrl-C; a batch also by SIGTERM."),
    ("143", "Stopped by SIGTERM."),
)


def man(context: typer.Context, debug: options.DebugOpt = False) -> None:
    """Write the manual page of all commands, in roff.

    Read it with `star man | man -l -`, or put it where man finds it: ~/.local/share/man/man1/star.1.
    """
    for line in man_page(context.find_root().command):
        console.print_line(line)


def man_page(command: Any) -> Iterator[str]:
    """Lines of roff.

    Args:
        command: typer's command of the whole program.
    """
    yield f'.TH STAR 1 "" "star {__version__}" "User Commands"'
    yield from (".SH NAME", r"star \- draw pictures from words", ".SH SYNOPSIS", r"\fBstar\fR \fICOMMAND\fR [...]")
    yield ".SH DESCRIPTION"
    yield from _words(command.help)
    yield ".SH COMMANDS"
    yield from _commands(command, typer.Context(command, info_name="star"))
    yield ".SH ENVIRONMENT"
    yield from _list([(variable_of(name), f"Default of --{name.replace('_', '-')}.") for name in KEYS])
    yield from _list(_MORE_VARIABLES)
    yield ".SH FILES"
    yield from _list(_FILES)
    yield ".SH EXIT STATUS"
    yield from _list(_EXITS)


def _commands(group: Any, context: typer.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            yield from _commands(command, inner)
            continue
        yield f'.SS "{_escaped(inner.command_path)}"'
        yield _escaped(" ".join(command.collect_usage_pieces(inner)))
        yield ".PP"
        yield from _words(command.help)
        records = [parameter.get_help_record(inner) for parameter in command.get_params(inner)]
        yield from _list([record for record in records if record is not None])


def _list(pairs: Any) -> Iterator[str]:
    for head, words in pairs:
        yield ".TP"
        yield rf"\fB{_escaped(head)}\fR"
        yield _escaped(" ".join(words.split()))


def _words(text: str | None) -> Iterator[str]:
    for number, paragraph in enumerate(inspect.cleandoc(text or "").split("\n\n")):
        if number:
            yield ".PP"
        yield _escaped(" ".join(paragraph.split()))


def _escaped(text: str) -> str:
    """Hyphens stay hyphens, and no line begins a command."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text
