"""`star weights`: the published models, from the authors' files to model folders and back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from star_cli.checkpoints.published import PUBLISHED
from star_cli.cli import console
from star_cli.cli import weights as command
from tests.checkpoints.official_files import TINY_VAR, write_files
from tests.cli.command import Star


@pytest.fixture(autouse=True)
def _tiny_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, TINY_VAR.name, TINY_VAR)


@pytest.fixture
def files(folder: Path) -> list[Path]:
    return write_files(folder, TINY_VAR)


def test_list_is_a_line_of_fields_a_model(star: Star) -> None:
    result = star("weights", "list")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = {line.split("\t")[0]: line.split("\t") for line in result.stdout.splitlines()}
    assert list(rows) == list(PUBLISHED)
    assert rows["star-256"][2:] == [
        "MIT",
        "taocrayon/STAR: star_rope_d30_256-ar-ckpt-ep3-iter20000.pth",
        "not here",
    ]
    assert rows["star-512"][3] == "taocrayon/STAR: (found by listing)"
    assert rows["star-256-d16-t5"][3] == "(not published)"


def test_list_for_programs_and_for_people(star: Star, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line) for line in star("weights", "list", "--json").stdout.splitlines()]
    assert [(row["name"], row["resolution"], row["path"]) for row in rows[:3]] == [
        ("star-256-d16", 256, None),
        ("star-256", 256, None),
        ("star-512", 512, None),
    ]
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert star("weights", "list").stdout.splitlines()[0].split() == ["name", "what", "licence", "from", "folder"]


def test_converted_model_is_found_verified_and_exported_by_its_name(
    star: Star, files: list[Path], folder: Path
) -> None:
    converted = star("weights", "convert", *files, "--as", "tiny-var")
    assert (converted.exit_code, converted.stderr) == (0, "")
    assert star("weights", "path", "tiny-var").stdout == converted.stdout
    assert Path(converted.stdout.strip()) == command.published_path("tiny-var")
    verified = star("weights", "verify", "tiny-var")
    assert verified.stdout.splitlines() == [
        "transformer.safetensors\tok",
        "vqvae.safetensors\tok",
        "unused.safetensors\tok",
    ]
    exported = star("weights", "export", "tiny-var")
    paths = ["tiny-var-official/tiny-var.pth", "tiny-var-official/vae_ch160v4096z32.pth"]
    assert exported.stdout.splitlines() == paths
    again = star("weights", "export", "tiny-var")
    assert (again.exit_code, again.stderr.splitlines()[0]) == (2, "error: tiny-var-official/tiny-var.pth exists")
    assert star("weights", "export", "tiny-var", "--force").exit_code == 0


def test_convert_writes_where_it_is_told_in_the_dtype_it_is_told(star: Star, files: list[Path], folder: Path) -> None:
    assert star("weights", "convert", *files, "--as", "tiny-var", "--out", "whole").stdout == "whole\n"
    star("weights", "convert", *files, "--as", "tiny-var", "--out", "half", "--dtype", "float16")
    sizes = [(folder / name / "transformer.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]


def test_verify_tells_every_damaged_file_and_fails(star: Star, files: list[Path], folder: Path) -> None:
    star("weights", "convert", *files, "--as", "tiny-var", "--out", "model")
    (folder / "model" / "vqvae.safetensors").write_bytes(b"short")
    (folder / "model" / "unused.safetensors").unlink()
    result = star("weights", "verify", "model", "--json")
    assert result.exit_code == 2
    found = {row["file"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert found["transformer.safetensors"]["ok"]
    assert found["vqvae.safetensors"]["problem"].startswith("vqvae.safetensors: 5 bytes, expected ")
    assert found["unused.safetensors"]["problem"].startswith("unused.safetensors: missing in ")
    error, hint = result.stderr.splitlines()
    assert error.startswith("error: model: 2 of its files are damaged: vqvae.safetensors: 5 bytes")
    assert hint == "hint: run `star weights download tiny-var --force`"


def test_unknown_names_are_said_with_the_known_ones(star: Star, files: list[Path]) -> None:
    result = star("weights", "convert", *files, "--as", "star-2048")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no published model is called 'star-2048'; known: star-256-d16, star-256,")
    missing = star("weights", "path", "star-256")
    assert missing.stderr.splitlines() == [
        "error: the weights of star-256 are not here yet",
        "hint: run `star weights download star-256`",
    ]
    assert star("weights", "download", "star-256-d16-t5").stderr.startswith(
        "error: no weights of star-256-d16-t5 are published\nhint: convert your own"
    )


def test_text_tower_for_a_model_without_text_is_refused(star: Star, files: list[Path], folder: Path) -> None:
    result = star("weights", "convert", *files, "--as", "tiny-var", "--text-encoder", folder)
    assert result.stderr.splitlines()[0] == "error: tiny-var draws classes and reads no text"


def test_listing_and_paths_need_no_torch(environment: dict[str, str], folder: Path) -> None:
    code = (
        "import sys\nfrom star_cli.cli.app import app\n"
        "try:\n    app(['weights', 'list'], prog_name='star')\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
