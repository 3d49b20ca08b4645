"""`star models`: shipped and cached models."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from star_cli.checkpoints import known
from star_cli.cli import console
from star_cli.cli import models as command
from tests.cli.command import Star


@pytest.fixture
def roots(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The default model shipped, another one cached; both are the tiny one."""
    shipped, cached = tmp_path / "weights" / "star-icons", tmp_path / "cache" / "models" / "other"
    for path in (shipped, cached):
        shutil.copytree(tiny_model_folder, path)
    for module in (known, command):
        monkeypatch.setattr(module, "shipped_root", lambda: shipped.parent)
    monkeypatch.setenv("STAR_CACHE", str(tmp_path / "cache"))
    return {"shipped": shipped, "cached": cached}


def test_each_model_is_a_line_of_fields(star: Star, roots: dict[str, Path]) -> None:
    result = star("models")
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = (line.split("\t") for line in result.stdout.splitlines())
    assert [*first[:1], *first[2:]] == ["star-icons", "32, 64", "MIT", "shipped", str(roots["shipped"])]
    assert [*second[:1], *second[2:]] == ["other", "32, 64", "MIT", "cached", str(roots["cached"])]
    assert first[1].endswith(" MB")


def test_json_says_the_same_for_programs(star: Star, roots: dict[str, Path]) -> None:
    first, second = map(json.loads, star("models", "--json").stdout.splitlines())
    assert (first["name"], first["is_default"], first["resolutions"]) == ("star-icons", True, [32, 64])
    assert (second["name"], second["is_default"], second["source"]) == ("other", False, "cached")
    assert first["size_bytes"] == second["size_bytes"] > 1000


def test_terminal_gets_a_table(star: Star, roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    header, first, second = star("models").stdout.splitlines()
    assert header.split() == ["name", "size", "resolutions", "licence", "source", "folder"]
    assert first.startswith("star-icons (default)")
    assert second.startswith("other")


def test_damaged_model_is_left_out_and_said(star: Star, roots: dict[str, Path]) -> None:
    (roots["cached"] / "config.json").write_text("{")
    result = star("models")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.startswith(f"warning: left out: {roots['cached']}: config.json: not valid JSON")


def test_model_is_found_by_the_name_listed(star: Star, roots: dict[str, Path]) -> None:
    assert star("generate", "x", "--model", "other").exit_code == 0
    assert star("generate", "x").exit_code == 0


def test_listing_reads_no_weights(roots: dict[str, Path], environment: dict[str, str], tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from star_cli.cli.app import app\ntry: app(['models'])\nfinally: assert 'torch' not in sys.modules"
    )
    environment |= {"STAR_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "other\t" in done.stdout
