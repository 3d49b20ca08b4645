"""The guide in docs/: its help texts are those of the commands, every flag is explained, no link leads nowhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITER = DOCS / "write_help.py"
PAGES = sorted(DOCS.glob("*.md"))
COMMANDS = [
    "generate",
    "batch",
    "sheet",
    "info",
    "models",
    "doctor",
    "bench",
    "config",
    "data",
    "train",
    "finetune",
    "weights",
]
BLOCK = re.compile(r"<!-- help:(?P<command>[a-z ]+) -->.*?<!-- /help -->", re.DOTALL)


@pytest.fixture(scope="module")
def with_current_help() -> Callable[[str], str]:
    function: Callable[[str], str] = runpy.run_path(str(WRITER))["with_current_help"]
    return function


@pytest.mark.parametrize("command", COMMANDS)
def test_help_on_a_page_is_the_commands_own_whatever_the_terminal(
    command: str, with_current_help: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    page = (DOCS / f"{command}.md").read_text(encoding="utf-8")
    assert command in [block["command"] for block in BLOCK.finditer(page)]
    assert with_current_help(page) == page, "out of date: run `python docs/write_help.py`"
    assert all(len(line) <= 80 for block in BLOCK.finditer(page) for line in block[0].splitlines())


def test_an_old_help_text_is_replaced_and_nothing_else(with_current_help: Callable[[str], str]) -> None:
    page = "before\n<!-- help:info -->\nold\n<!-- /help -->\nafter\n"
    current = with_current_help(page)
    assert current.startswith("before\n<!-- help:info -->\n```text\nUsage: star info ")
    assert current.endswith("```\n<!-- /help -->\nafter\n")
    assert "old" not in current
    with pytest.raises(ValueError, match="there is no command nothing"):
        with_current_help("<!-- help:nothing -->\n<!-- /help -->\n")


def test_writing_help_does_not_import_torch(environment: dict[str, str]) -> None:
    probe = f"""
import runpy, sys
page = open({str(DOCS / "generate.md")!r}, encoding="utf-8").read()
runpy.run_path({str(WRITER)!r})["with_current_help"](page)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained_on_its_page(command: str) -> None:
    page = (DOCS / f"{command}.md").read_text(encoding="utf-8")
    words = BLOCK.sub("", page)
    flags = {flag for block in BLOCK.finditer(page) for flag in re.findall(r"^  (--[a-z-]+)", block[0], re.MULTILINE)}
    assert flags > {"--help"}
    assert [flag for flag in sorted(flags - {"--help"}) if f"`{flag}" not in words] == []


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in PAGES if path.name != "README.md" and f"({path.name})" not in index] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_link_leads_nowhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (path.parent / link).exists()] == []
