"""Examples in docs/ run as they stand; a tiny model takes the place of the shipped one."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from star_cli.checkpoints import known
from star_cli.cli.app import app
from star_cli.pipeline import StarPipeline

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESOLUTIONS = {"512": "64", "256": "32"}  # what the tiny model draws
# training takes longer than a test may
SHELL = ("generate.md", "batch.md", "sheet.md", "config.md", "info.md", "models.md", "doctor.md")
REST_OF_SHELL = {"|", ">", "<", "&&"}


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


PYTHON = [path.name for path in sorted(DOCS.glob("*.md")) if blocks(path.name, "python")]


@pytest.fixture
def shipped(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model under the name of the shipped one, and an empty folder to be in."""
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "weights" / known.SHIPPED))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"name": known.SHIPPED}), encoding="utf-8")
    monkeypatch.setattr(known, "shipped_root", lambda: tmp_path / "weights")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("page", PYTHON)
def test_python_examples_of_a_page_run_one_after_the_other(page: str) -> None:
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python"), start=1):
        for ours, tiny in RESOLUTIONS.items():
            block = block.replace(f"res={ours}", f"res={tiny}")
        exec(compile(block, f"{page}, example {number}", "exec"), names)


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("page", SHELL)
def test_commands_of_a_page_run_one_after_the_other(page: str, tiny_pipeline: StarPipeline) -> None:
    (image,) = tiny_pipeline("a picture to look at")
    image.recipe["model"] = known.SHIPPED
    image.save("picture.png")
    Path("prompts.txt").write_text("a red circle\na blue square\n", encoding="utf-8")
    Path("rows.csv").write_text("prompt,seed\na red circle,7\n", encoding="utf-8")
    for line in blocks(page, "bash")[0].splitlines():
        words = [RESOLUTIONS.get(word, word) for word in shlex.split(line, comments=True)]
        end = next((place for place, word in enumerate(words) if word in REST_OF_SHELL), len(words))
        assert words[0] == "star"
        result = CliRunner().invoke(app, words[1:end], input="a red circle\n\na blue square\n")
        assert result.exit_code == 0, (line, result.stderr)
        assert not re.search("^(error|warning):", result.stderr, re.MULTILINE), (line, result.stderr)
        assert result.stdout_bytes != b""
