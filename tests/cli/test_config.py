"""`star config`: the user's defaults, where they come from, and what they reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from star_cli.cli.defaults import config_path
from star_cli.images import read_recipe
from tests.cli.command import Star


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "star.toml"
    monkeypatch.setenv("STAR_CONFIG", str(path))
    return path


def defaults(star: Star) -> dict[str, Any]:
    rows = json.loads(star("config", "--json").stdout)["defaults"]
    return {row["name"]: (row["value"], row["source"]) for row in rows if row["source"]}


def test_environment_hides_the_file(star: Star, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_file.write_text('model = "other"\ntop-k = 9\n')
    monkeypatch.setenv("STAR_MODEL", "mine")
    assert defaults(star) == {"model": ("mine", "STAR_MODEL"), "top_k": (9, str(config_file))}
    lines = star("config").stdout.splitlines()
    assert lines[0] == f"config file: {config_file}"
    assert "model\tmine\tSTAR_MODEL\tSTAR_MODEL" in lines
    assert "res\t-\t-\tSTAR_RES" in lines


def test_flag_then_recipe_then_environment_then_file(
    star: Star, folder: Path, config_file: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.write_text(f'model = "{tiny_model_folder}"\nres = 64\ntop_k = 3\nguidance = 1\nformat = "webp"\n')
    monkeypatch.setenv("STAR_GUIDANCE", "1.5")
    monkeypatch.setenv("STAR_DTYPE", "float32")
    assert star("generate", "x", "--top-k", 5).stdout == "x-0.webp\n"
    recipe = read_recipe(folder / "x-0.webp")
    assert (recipe["res"], recipe["top_k"], recipe["guidance"]) == (64, 5, 1.5)
    assert star("generate", "x", "--out", "named.png").exit_code == 0
    monkeypatch.setenv("STAR_TOP_K", "2")
    star("generate", "--from-image", "x-0.webp", "--out", "again.webp", "--model", tiny_model_folder)
    assert (folder / "again.webp").read_bytes() == (folder / "x-0.webp").read_bytes()
    assert star("batch", "-", input="x\n").stdout == "batch/00001-x-0.webp\n"
    assert read_recipe(folder / "batch" / "00001-x-0.webp")["top_k"] == 2
    assert star("batch", "-", "--template", "{slug}.png", input="x\n").stdout == "batch/x.png\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model = 3", "model must be text, not 3"),
        ('res = "big"', "res must be a whole number, not 'big'"),
        ('device = "tpu"', "device must be auto, cpu, cuda, mps, not tpu"),
        ("seed = 3", "unknown seed"),
        ("model", "star.toml: "),
        ("\xff", "star.toml: "),
    ],
)
def test_file_that_cannot_be_used_is_refused(star: Star, config_file: Path, text: str, words: str) -> None:
    config_file.write_bytes(text.encode("latin-1"))
    for command in (["config"], ["generate", "x"], ["batch", "-"]):
        result = star(*command, input="x")
        assert result.exit_code == 2
        assert words in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("STAR_RES", "big", "STAR_RES must be a whole number, not 'big'"),
        ("STAR_FORMAT", "gif", "STAR_FORMAT must be png, webp, jpeg, not gif"),
        ("STAR_TOP_P", "5", "STAR_TOP_P: --top-p must be a number above 0"),
        ("STAR_CONFIG", "/nowhere/star.toml", "STAR_CONFIG: there is no file /nowhere/star.toml"),
        ("STAR_GUIDANCE", "-1", "STAR_GUIDANCE: --guidance must be a number from 0 to 1000, not -1.0"),
    ],
)
def test_variable_that_cannot_be_used_is_refused(
    star: Star, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    result = star("generate", "x")
    assert result.exit_code == 2
    assert words in result.stderr


def test_file_is_where_the_system_keeps_such_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STAR_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_path() == tmp_path / "star" / "config.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert config_path() == Path.home() / ".config" / "star" / "config.toml"


def test_crlf_and_byte_order_mark_are_read(star: Star, config_file: Path) -> None:
    config_file.write_bytes(b"\xef\xbb\xbftop_k = 5\r\nres = 64\r\n")
    assert {name: value for name, (value, _) in defaults(star).items()} == {"res": 64, "top_k": 5}


# -- manual and completion --------------------------------------------------------------------------------------------


def test_manual_names_every_command_flag_and_variable(star: Star) -> None:
    page = star("man").stdout
    assert page.startswith('.TH STAR 1 "" "star ')
    for words in ('.SS "star batch"', '.SS "star weights list"', r"\fB\-\-retry\-failed\fR", "STAR_MODEL", "130"):
        assert words in page
    assert not [line for line in page.splitlines() if line.startswith("'")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_each_shell(star: Star, shell: str) -> None:
    result = star("--show-completion", shell)
    assert result.exit_code == 0
    assert "_STAR_COMPLETE" in result.stdout


def test_completion_names_models(star: Star, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_STAR_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "star batch --model ")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert "star-shapes" in star().stdout.split()
