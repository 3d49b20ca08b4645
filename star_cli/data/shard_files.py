"""Which files a set of shards is: names with braces and wildcards, and commands whose output is kept as a file."""

from __future__ import annotations

import atexit
import glob
import hashlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from star_cli.errors import DataError

PIPE = "pipe:"
SHARD_SUFFIX = ".tar"
MOST_NAMES = 1_000_000
"""That braces may stand for: more are a slip, and would fill the memory before the first file is looked for."""
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILDCARDS = re.compile(r"[*?\[]")
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
"""Suffixes of shards that cannot be read in any order."""
_LAST_LINES, _LAST_BYTES = 3, 4096  # of what a command complains about: the first of many lines are seldom the reason


@dataclass(frozen=True)
class ShardFile:
    """One tar file."""

    name: str
    """What to call it in messages."""
    path: Path
    """Where it lies."""


def find_shards(where: str) -> list[ShardFile]:
    """The local tar files that a name with `{000..010}`, `{a,b}`, `*`, `?` or `[...]` stands for.

    A file or folder of exactly this name wins over what braces and wildcards mean; a folder stands for its tar files.
    Braces keep the order in which they are written; what a wildcard finds is sorted.

    Raises:
        DataError: a file that is named is not there, wildcards that find nothing, a folder without tar files, a
            compressed file, or braces that cannot be expanded, see `expand`.
    """
    if os.path.isdir(where):  # noqa: PTH112 - Path.is_dir raises for a long name
        return _in_folder(Path(where))
    shards = []
    for name in [where] if os.path.exists(where) else expand(where):  # noqa: PTH110 - likewise
        for path in _matches(name):
            _check(path)
            shards.append(ShardFile(str(path), path))
    return shards


def _in_folder(folder: Path) -> list[ShardFile]:
    """The tar files of a folder in the order of their names."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error
    paths = [folder / name for name in names if name.lower().endswith(SHARD_SUFFIX)]
    if not paths:
        raise DataError(f"{folder}: no tar file in this folder")
    for path in paths:
        _check(path)
    return [ShardFile(str(path), path) for path in paths]


def _matches(name: str) -> list[Path]:
    """The file of this name, or those that its wildcards find."""
    if not _WILDCARDS.search(name) or os.path.exists(name):  # noqa: PTH110 - as above
        return [Path(name)]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - the pattern may be absolute
    if not found:
        raise DataError(f"{name}: no such file", "quote the pattern, so that the shell leaves it alone")
    return [Path(path) for path in found]


def expand(pattern: str, choices: bool = True) -> list[str]:
    """Every name that braces stand for: `{000..010}` counts, with leading zeros where the ends have them.

    Args:
        pattern: a name.
        choices: `{a,b}` stands for several, too.
    Raises:
        DataError: a range that counts down, or more names than `MOST_NAMES`.
    """
    start = pattern.find("{")
    while start >= 0:
        body = pattern[start + 1 : _closing(pattern, start)]
        if options := _options(body, choices):
            rests = expand(pattern[start + len(body) + 2 :], choices)
            if len(options) * len(rests) > MOST_NAMES:
                raise _too_many(pattern)
            return [pattern[:start] + option + rest for option in options for rest in rests]
        start = pattern.find("{", start + 1)
    return [pattern]


def _closing(pattern: str, start: int) -> int:
    """Where the brace that opens at `start` closes; `start` itself when it never does."""
    depth = 0
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0:
            return place
    return start


def _options(body: str, choices: bool) -> list[str]:
    """What the words between braces stand for; nothing when it is plain text."""
    if match := _RANGE.fullmatch(body):
        return list(_count(match[1], match[2]))
    parts, depth = [""], 0
    for sign in body:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [name for part in parts for name in expand(part)] if choices and len(parts) > 1 else []


def _count(first: str, last: str) -> Iterator[str]:
    if max(len(first), len(last)) > len(str(MOST_NAMES**2)):  # Python converts some thousands of digits at most
        raise _too_many(f"{{{first}..{last}}}")
    if int(first) > int(last):
        raise DataError(f"{{{first}..{last}}} counts down", f"write {{{last}..{first}}}")
    if int(last) - int(first) >= MOST_NAMES:
        raise _too_many(f"{{{first}..{last}}}")
    width = max(len(first), len(last)) if "0" in (first[0], last[0]) and len(first) > 1 else 0
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))


def _too_many(pattern: str) -> DataError:
    return DataError(f"{pattern} stands for more than {MOST_NAMES:,} names", "give the folder of the shards, or fewer")


def _check(path: Path) -> None:
    if not os.path.isfile(path):  # noqa: PTH113 - as above
        reason = "is not a file" if os.path.exists(path) else "no such file"  # noqa: PTH110 - as above
        raise DataError(f"{path}: {reason}", "a range in braces must name files that are all there")
    if path.suffix.lower() in COMPRESSED:
        raise DataError(
            f"{path}: compressed, so its members cannot be read in any order",
            f"unpack it, or let star do so: 'pipe:gzip -dc {path}'",
        )


# -- commands ---------------------------------------------------------------------------------------------------------


def spool(where: str, folder: Path | None) -> Iterator[ShardFile]:
    """Run each command of `pipe:COMMAND` once, and keep what it writes as a tar file.

    Ranges in braces make several commands of one. A command whose output already lies in the folder is not run again.

    Args:
        where: `pipe:` and a command for the shell.
        folder: where the files go, named by their commands' hash; None: a temporary one, removed when the process ends.
    Raises:
        DataError: a command that fails or writes nothing, or a folder that cannot be written to.
    """
    commands = expand(where.removeprefix(PIPE).strip(), choices=False)
    if commands == [""]:
        raise DataError(
            "pipe: without a command", "for example 'pipe:curl -s https://example.org/shard-{000..010}.tar'"
        )
    folder = _temporary() if folder is None else folder
    for command in commands:
        path = folder / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.tar"
        if not path.exists():
            _keep_output(command, path)
        yield ShardFile(f"{PIPE}{command}", path)


def _keep_output(command: str, path: Path) -> None:
    """Run a command; its output becomes a file, whole or not at all."""
    temporary = path.with_suffix(f".{secrets.token_hex(8)}.tmp")  # machines that share the folder share process numbers
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as output, tempfile.TemporaryFile() as complaints:
            code = _run(command, output, complaints)
            os.fsync(output.fileno())  # else the name may outlive the bytes when the machine stops
            last_words = "".join(f": {line}" for line in _last_lines(complaints))
        if code != 0:
            raise DataError(f"{PIPE}{command} ended with exit code {code}{last_words}")
        if temporary.stat().st_size == 0:
            raise DataError(f"{PIPE}{command} wrote nothing{last_words}")
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"cannot keep the output of {PIPE}{command} in {path.parent}: {reason}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _last_lines(file: IO[bytes]) -> list[str]:
    """The last lines of a text that say something; what a progress meter has drawn over is not seen."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _LAST_BYTES))
    lines = [line.strip() for line in file.read().decode(errors="replace").replace("\r", "\n").split("\n")]
    return [line for line in lines if line][-_LAST_LINES:]


def _run(command: str, output: IO[bytes], complaints: IO[bytes]) -> int:
    """Exit code of a command for the shell; whatever interrupts the wait ends the command and all it started."""
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=output, stderr=complaints, start_new_session=True
    )
    try:
        return process.wait()
    except BaseException:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        raise


@lru_cache(maxsize=1)
def _temporary() -> Path:
    """One folder for all commands of this process."""
    folder, owner = tempfile.mkdtemp(prefix="star-spool-"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a worker that was forked off
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)
