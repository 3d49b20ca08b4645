"""Errors in words for the terminal: one line of what is wrong, one of what to do, and the exit code."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from star_cli.errors import OptionError, StarError
from star_cli.memory import is_out_of_memory

INTERRUPTED, TERMINATED = 130, 143  # 128 + the signal's number, as shells count
_LONGEST = 1000


class TerminatedError(BaseException):
    """SIGTERM came. No Exception, so that nothing on the way out takes it for a failure to work around."""


class StdoutClosedError(Exception):
    """Whoever read the picture from standard output is gone."""


@dataclass(frozen=True)
class Failure:
    """What the user is told."""

    message: str
    """After "error: "; "" when there is nobody to tell."""
    hint: str | None = None
    exit_code: int = 1


def explain(error: Exception) -> Failure:
    """Words for an error of any kind."""
    if isinstance(error, StarError):
        return Failure(str(error), error.hint, error.exit_code)
    if isinstance(error, StdoutClosedError):
        return Failure("")
    if isinstance(error, typer.TyperException):
        return _usage(error)
    if is_out_of_memory(error):
        return Failure("out of memory", "draw a smaller --res, or use --dtype bfloat16")
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes):
        # a name that no system takes is bad input, wherever it was met
        exit_code = OptionError.exit_code if error.errno == errno.ENAMETOOLONG else 1
        return Failure(f"{os.fsdecode(error.filename)}: {error.strerror or error}", exit_code=exit_code)
    if isinstance(error, OSError) and error.strerror:
        return Failure(f"the system says: {error.strerror}")
    return Failure(
        f"internal: {type(error).__name__}: {error}", "this is a bug: report what `--debug` shows, with the command"
    )


def is_debug(arguments: Sequence[str]) -> bool:
    """Was `--debug` or STAR_DEBUG=1 given? Looked for here: a command line may be wrong before it is read."""
    return "--debug" in arguments or os.environ.get("STAR_DEBUG", "0") not in ("", "0")


def shorten(text: str, longest: int = _LONGEST) -> str:
    """The text, or its beginning and how much is left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest].rstrip()} ... ({len(text):,} characters)"


def _usage(error: typer.TyperException) -> Failure:
    """A command line that typer refuses, in the form of our own errors."""
    message = error.format_message().replace("Value error, ", "").strip().rstrip(".")  # pydantic's words inside typer's
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "star"
    return Failure(message[:1].lower() + message[1:], f"see `{command} --help`", error.exit_code)
