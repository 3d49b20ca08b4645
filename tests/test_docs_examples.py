"""Python examples in docs/ run as they stand; a tiny model takes the place of the shipped one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from star_cli.checkpoints import known

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = {path.name: BLOCK.findall(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("*.md"))}
RESOLUTIONS = {"res=512": "res=64", "res=256": "res=32"}  # what the tiny model draws


def test_there_are_examples() -> None:
    assert len(PAGES["library.md"]) > 5


@pytest.mark.parametrize("page", [name for name, blocks in PAGES.items() if blocks])
def test_examples_of_a_page_run_one_after_the_other(
    page: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "weights" / known.SHIPPED)
    monkeypatch.setattr(known, "shipped_root", lambda: tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(PAGES[page], start=1):
        for ours, tiny in RESOLUTIONS.items():
            block = block.replace(ours, tiny)
        exec(compile(block, f"{page}, example {number}", "exec"), names)
