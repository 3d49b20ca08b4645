"""The panel of `star batch` on a terminal that shows both streams: it moves out of the way, and is gone at the end."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest

from star_cli.cli.app import app

pty = pytest.importorskip("pty", reason="no pseudo-terminals")
_PARTS = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|(.)", re.DOTALL)


def screen(shown: str) -> list[str]:
    """The lines that a terminal shows after these characters; longer lines than it is wide are not folded."""
    lines, row, column = [""], 0, 0
    for match in _PARTS.finditer(shown):
        count, command, character = match.groups()
        if command == "A":
            row = max(0, row - int(count or 1))
        elif command == "K":
            lines[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif character:
            lines[row] = lines[row].ljust(column)[:column] + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def on_terminal(work: Callable[[], None]) -> str:
    """What it writes to standard output and error, both of which are a terminal."""
    reader, writer = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while data := os.read(reader, 65536):
                shown.extend(data)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    with (
        os.fdopen(writer, "w", encoding="utf-8") as out,
        os.fdopen(os.dup(writer), "w", encoding="utf-8") as error,
        redirect_stdout(out),
        redirect_stderr(error),
    ):
        work()
    thread.join(10)
    os.close(reader)
    return shown.decode()


@pytest.mark.parametrize("columns", [70, 140])
def test_paths_stand_above_the_panel_and_it_is_gone_at_the_end(
    folder: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("star_cli.cli.batch_panel._BAR_EVERY_S", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    (folder / "p.txt").write_text("a\nb\nc\nd\ne\n")

    def work() -> None:
        with pytest.raises(SystemExit) as end:
            app(["batch", "p.txt", "--batch-size", "2", "--model", str(tiny_model_folder)])
        assert end.value.code == 0

    shown = on_terminal(work)
    assert "loading" in shown
    assert ("100% of 1 in work  e" in shown) is (columns == 140)  # the last thing that it showed
    *paths, last = screen(shown)
    assert paths == [f"p/{number:05d}-{letter}-0.png" for number, letter in enumerate("abcde", start=1)]
    assert last.startswith("5 drawn in ")
