"""Writes the `--help` of each command into its page, between `<!-- help:COMMAND -->` and `<!-- /help -->`.

Run it after a change of a command's words (tests/cli/test_docs.py tells when):

    python docs/write_help.py
"""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from star_cli.cli.app import app

PAGES = Path(__file__).parent
COLUMNS = "80"
_BLOCK = re.compile(r"(<!-- help:(?P<command>[a-z ]+) -->\n).*?(<!-- /help -->)", re.DOTALL)


def help_of(command: str) -> str:
    """What `star COMMAND --help` shows on a terminal of 80 columns, whatever the terminal here."""
    result = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="star", env={"COLUMNS": COLUMNS})
    if result.exit_code:
        raise ValueError(f"there is no command {command}: {result.stderr.strip()}")
    return result.stdout


def with_current_help(page: str) -> str:
    """The text of a page, every marked block in it made anew."""
    return _BLOCK.sub(lambda block: f"{block[1]}```text\n{help_of(block['command'])}```\n{block[3]}", page)


def main() -> None:
    """Rewrite the pages that are out of date."""
    for path in sorted(PAGES.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (current := with_current_help(page)) != page:
            path.write_text(current, encoding="utf-8")


if __name__ == "__main__":
    main()
