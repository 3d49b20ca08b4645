"""`star data scenes`, on the tiny icon set."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from star_cli.cli.data_scenes import scenes
from star_cli.data.icons.scenes import HELD_OUT_SEED
from star_cli.errors import DataError, OptionError, OutputPathError
from tests.data.icons.conftest import icon_folder  # noqa: F401 - a fixture

pytest.importorskip("resvg_py")


@pytest.fixture
def run(icon_folder: Path) -> Callable[..., Result]:  # noqa: F811
    app = typer.Typer()
    app.command()(scenes)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, ["--icons", str(icon_folder), "--quiet", *map(str, arguments)])

    return run


def test_pictures_and_captions_are_written_and_the_folder_named(run: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    done = run("--out", out, "--count", 3, "--res", 32, "--seed", 7, "--objects", 0)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [7, 8, 9]
    with Image.open(out / rows[2]["file_name"]) as picture:
        assert picture.size == (32, 32)


def test_held_out_scenes_have_seeds_of_their_own(run: Callable[..., Result], tmp_path: Path) -> None:
    assert run("--out", tmp_path / "a", "--count", 1, "--res", 16, "--held-out").exit_code == 0
    (row,) = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert row["seed"] == HELD_OUT_SEED


def test_a_sheet_alone(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("--sheet", tmp_path / "sheet.png", "--count", 4, "--mix", "simple")
    assert done.stdout.strip() == str(tmp_path / "sheet.png")
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to write"),
        (("--sheet", "x.png", "--count", "0"), "--count of at least 1"),
        (("--sheet", "x.png", "--res", "8"), "--res from 16"),
        (("--sheet", "x.png", "--seed", HELD_OUT_SEED), "seeds go up to"),
        (("--sheet", "x.png", "--objects", "-2"), "-2 objects"),
        (("--sheet", "x.png", "--objects", "2"), "shows 3 kinds of things at once, and there are 2"),
        (("--sheet", "x.png", "--objects", "1", "--mix", "composed"), "shows 2 kinds of things at once"),
        (("--sheet", "x.png", "--objects", "1", "--mix", "simple", "--held-out"), "no scene of these 1 things"),
    ],
)
def test_bad_options_are_said(run: Callable[..., Result], arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, OptionError)
    assert said in str(done.exception)
    assert done.exception.exit_code == 2


def test_nothing_is_overwritten(run: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "scenes"
    assert run("--out", out, "--count", 1, "--res", 16).exit_code == 0
    assert isinstance(run("--out", out, "--count", 1, "--res", 16).exception, OutputPathError)
    (tmp_path / "sheet.png").write_text("mine")
    assert isinstance(run("--sheet", tmp_path / "sheet.png", "--count", 1).exception, OutputPathError)
    assert (tmp_path / "sheet.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "taken"), "taken holds files already"),
        (("--out", "taken/mine.txt"), "mine.txt is not a folder"),
        (("--out", "taken/mine.txt/below"), "mine.txt is not a folder"),
        (("--sheet", "s.jpg"), "s.jpg: a sheet is a PNG file"),
        (("--sheet", "sheet"), "sheet: a sheet is a PNG file"),
        (("--sheet", "gone/s.png"), "there is no folder gone"),
        (("--sheet", "taken/s.png"), "s.png exists"),
    ],
)
def test_where_to_write_is_asked_before_the_icons_are_opened(
    arguments: tuple[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    for name in ("mine.txt", "s.png"):
        (tmp_path / "taken" / name).write_text("mine")
    app = typer.Typer()
    app.command()(scenes)
    done = CliRunner().invoke(app, ["--icons", "gone", *arguments])
    assert isinstance(done.exception, OutputPathError)
    assert said in str(done.exception)
    assert "--force" not in str(done.exception.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert {path.read_text() for path in (tmp_path / "taken").iterdir()} == {"mine"}


def test_missing_icons_are_named(run: Callable[..., Result], tmp_path: Path) -> None:
    done = run("--icons", tmp_path / "none", "--sheet", tmp_path / "s.png")
    assert isinstance(done.exception, DataError)
