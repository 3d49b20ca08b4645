"""`star data tokens`: a cache from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from star_cli.cli.app import Commands
from star_cli.cli.data_tokens import tokens
from star_cli.data.cache import open_cache
from star_cli.data.source import ShapeScenes


def run(*arguments: object) -> Result:
    app = typer.Typer(cls=Commands, rich_markup_mode=None)
    app.command()(tokens)
    app.command()(lambda: None)
    return CliRunner().invoke(app, ["tokens", *map(str, arguments)])


def test_tokens_of_pictures_are_written_and_the_folder_told(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    command = ("shapes:5", "--model", tiny_model_folder, "--out", out, "--res", 32, "--res", 64, "--device", "cpu")
    result = run(*command, "--batch-size", 2)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{out}\n", "")
    cache = open_cache(out, source=ShapeScenes(5))
    assert set(cache.sides) == {32, 64}
    assert cache.captions(3) == ShapeScenes(5).captions(3)
    assert cache.features([(0, 0)]).states.shape == (1, 16, 32)
    before = (out / "tokens-32-00000.safetensors").stat().st_mtime_ns
    assert run(*command).exit_code == 0
    assert (out / "tokens-32-00000.safetensors").stat().st_mtime_ns == before


def test_features_may_be_left_out_or_halved(tiny_model_folder: Path, tiny_class_folder: Path, tmp_path: Path) -> None:
    for folder, flags, kept in (
        (tiny_model_folder, ("--no-features",), "none"),
        (tiny_class_folder, ("--no-features",), "none"),
        (tiny_model_folder, ("--feature-dtype", "float16"), "float16"),
    ):
        out = tmp_path / f"{folder.name}-{kept}"
        result = run("shapes:2", "--model", folder, "--out", out, "--device", "cpu", *flags)
        assert result.exit_code == 0, result.stderr
        assert json.loads((out / "cache.json").read_text())["features"] == kept


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--res", 48), "error: model tiny has tokens at 32 or 64 pixels, not 48"),
        (("--res", "big"), "error: invalid value for '--res': 'big' is not a whole number"),
        (("--crop", "left"), "error: invalid value for '--crop'"),
    ],
)
def test_what_cannot_be_is_said(tiny_model_folder: Path, tmp_path: Path, flags: tuple[object, ...], said: str) -> None:
    result = run("shapes:2", "--model", tiny_model_folder, "--out", tmp_path / "cache", *flags)
    assert result.exit_code == 2
    assert result.stderr.startswith(said)
    assert not (tmp_path / "cache").exists()


def test_where_to_write_is_asked_before_the_pictures_are_looked_for(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for out, said in ((tmp_path / "letter.txt", "is not a folder"), (tmp_path, "is not empty, and holds no token")):
        result = run("no-such-pictures", "--model", tiny_model_folder, "--out", out)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_model_that_draws_classes_has_no_features(tiny_class_folder: Path, tmp_path: Path) -> None:
    result = run("shapes:2", "--model", tiny_class_folder, "--out", tmp_path / "cache")
    assert result.exit_code == 2
    assert "has no text encoder\nhint: use --no-features" in result.stderr


def test_scenes_without_end_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    result = run("icons:simple:10", "--model", tiny_model_folder, "--out", tmp_path / "cache")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: icons:simple:10: scenes of icons are composed without end")
    assert "`star data scenes`" in result.stderr
    assert not (tmp_path / "cache").exists()


def test_another_models_cache_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    assert run("shapes:2", "--model", tiny_model_folder, "--out", out, "--device", "cpu").exit_code == 0
    result = run("shapes:3", "--model", tiny_model_folder, "--out", out, "--device", "cpu")
    assert result.exit_code == 2
    assert f"error: {out} holds a token cache with another source" in result.stderr
