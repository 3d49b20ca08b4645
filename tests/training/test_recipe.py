"""A whole recipe through the real command; recipes that cannot work are refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from star_cli.checkpoints.folder import read_model_folder
from star_cli.cli.app import app
from star_cli.errors import OptionError
from star_cli.pipeline import StarPipeline
from star_cli.training.recipe import RECIPES, find_recipe, read_recipe

TINY = Path(__file__).parent / "tiny.toml"


def test_one_command_makes_a_model_that_draws(tmp_path: Path) -> None:
    out, run = tmp_path / "model", tmp_path / "run"
    command = ["train", "all", "--recipe", str(TINY), "--out", str(out), "--run", str(run), "--threads", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(out)
    folder = read_model_folder(out)
    assert folder.name == "tiny-shapes"
    assert folder.schedules == read_recipe(TINY).schedules
    assert set(folder.provenance["seconds"]) == {"clip", "vqvae", "star", "finetune"}
    pipe = StarPipeline.from_pretrained(str(out))
    small, large = pipe("a red circle", res=32)[0], pipe("a red circle", res=64)[0]
    assert small.pixels.shape == (32, 32, 3)
    assert large.pixels.shape == (64, 64, 3)
    assert list((run / "star").glob("preview-*.png"))
    first = folder.hash
    assert CliRunner().invoke(app, command).exit_code == 0  # every stage is taken from its checkpoint
    assert read_model_folder(out).hash == first


def test_shipped_recipes_can_be_read() -> None:
    names = [path.stem for path in RECIPES.glob("*.toml")]
    assert "star-shapes" in names
    for name in names:
        recipe = read_recipe(find_recipe(name))
        assert recipe.default_resolution in recipe.schedules
        for resolution, schedule in recipe.schedules.items():
            assert schedule.last_side * recipe.vqvae_model.factor == resolution


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps = 3,", "stepps = 3,", "stepps"),
        ('licence = "MIT"', "", "licence is missing"),
        ("seed = 3", "seed = 3\ncolour = 1", "colour"),
        ("scales = 2", "scales = 9", "fits no schedule"),
        ("[clip]", "[clip", "no valid TOML"),
        ("groups = 1", "groups = 3", "groups"),
        ("32 = [1, 2, 4]", "32 = [1, 2, 5]", "ends at 40 px"),
        ("default_resolution = 32", "default_resolution = 48", "has no schedule"),
        ('store = "float16"', 'store = "int8"', "store"),
        ("plain_crop = 16", "plain_crop = 20", "crop of 20"),
    ],
)
def test_recipe_that_cannot_work_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = TINY.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "bad.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(OptionError, match=said):
        read_recipe(tmp_path / "bad.toml")


def test_target_that_holds_something_else_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    command = ["train", "all", "--recipe", str(TINY), "--out", str(tmp_path), "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "error:" in result.stderr
    assert not (tmp_path / "run").exists()


def test_unknown_recipe_names_those_that_exist() -> None:
    with pytest.raises(OptionError) as caught:
        find_recipe("stars")
    assert "star-shapes" in (caught.value.hint or "")
