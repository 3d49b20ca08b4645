"""Going on with a finished model: schedules of new resolutions, and the real command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from star_cli.checkpoints.folder import read_model_folder
from star_cli.checkpoints.known import find_model
from star_cli.cli.app import app
from star_cli.errors import OptionError
from star_cli.pipeline import StarPipeline
from star_cli.training.finetune import PUBLISHED_SIDES, finetune_recipe, longer_sides
from star_cli.training.making import Maker
from star_cli.training.recipe import Recipe
from star_cli.training.recipe_file import find_recipe, read_recipe, recipe_from_dict


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True).map(sorted), st.integers(1, 128))
def test_a_longer_schedule_rises_from_one_to_its_last_side(sides: list[int], last: int) -> None:
    longer = longer_sides(sides, last)
    assert longer[-1] == last
    assert list(longer) == sorted(set(longer))
    assert longer[0] == (sides[0] if sides[-1] == last else 1)


def test_known_schedules_go_on_in_their_manner() -> None:
    assert longer_sides((1, 2, 4, 8, 16), 64) == (1, 2, 4, 8, 16, 32, 64)
    assert longer_sides(PUBLISHED_SIDES[16], 32) == PUBLISHED_SIDES[32]
    assert longer_sides(PUBLISHED_SIDES[32], 64) == PUBLISHED_SIDES[64]
    assert longer_sides((1, 3, 9), 17) == (1, 5, 17)


def test_the_shipped_model_is_finetuned_as_its_recipe_says() -> None:
    base, own = find_model("star-shapes"), read_recipe(find_recipe("star-shapes"))
    recipe = finetune_recipe(base, 256, 512)
    assert recipe.finetune is not None
    assert own.finetune is not None
    assert (recipe.stages, recipe.schedules) == (("finetune",), own.schedules)
    assert (recipe.finetune.loop, recipe.finetune.portions) == (own.finetune.loop, own.finetune.portions)
    assert (recipe.store, recipe.data.source) == ("float16", "shapes")


@pytest.mark.parametrize("data", [None, "shapes:8"])
def test_a_model_goes_on_with_the_data_of_its_finetune_or_with_what_is_said(data: str | None) -> None:
    own = read_recipe(find_recipe("star-icons")).finetune
    recipe = finetune_recipe(find_model("star-icons"), 256, 512, data=data)
    assert recipe.finetune is not None
    assert own is not None
    assert (recipe.data.source, recipe.finetune.source) == (data or own.source, "")


def test_a_new_resolution_gets_level_rows_of_its_own() -> None:
    recipe = finetune_recipe(find_model("star-shapes"), 512, 1024, changes=["finetune.loop.steps=5"])
    assert recipe.schedules[1024].sides == (1, 2, 4, 8, 16, 32, 64)
    assert recipe.schedules[1024].first_level == 11
    assert recipe.finetune is not None
    assert recipe.finetune.loop.steps == 5
    assert {portion.resolution for portion in recipe.finetune.portions} == {512, 1024}


@pytest.mark.parametrize(("start", "target", "said"), [(300, 512, "does not draw 300"), (256, 500, "no multiple")])
def test_resolutions_that_cannot_be_are_refused(start: int, target: int, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        finetune_recipe(find_model("star-shapes"), start, target)


def test_the_command_makes_a_model_that_draws_both(tmp_path: Path, tiny_model_folder: Path) -> None:
    base = read_model_folder(tiny_model_folder)
    start = min(base.schedules)
    target = 2 * max(base.schedules)
    command = ["finetune", "--from", str(start), "--to", str(target), "--model", str(tiny_model_folder)]
    command += [
        "--steps",
        "3",
        "--batch-size",
        "1",
        "--lr",
        "1e-3",
        "--set",
        "finetune.stage.scenes=64",
        "--threads",
        "1",
    ]
    command += ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "model")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    made = read_model_folder(tmp_path / "model")
    assert set(made.schedules) == {*base.schedules, target}
    assert made.vqvae == base.vqvae
    pipe = StarPipeline.from_pretrained(str(tmp_path / "model"))
    for resolution in (start, target):
        assert pipe("a red circle", res=resolution)[0].pixels.shape == (resolution, resolution, 3)
    before, after = base.load_transformer().state_dict(), made.load_transformer().state_dict()
    old_rows = before["level_embedding.weight"].shape[0]
    assert after["level_embedding.weight"].shape[0] == old_rows + len(made.schedules[target])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_a_finished_finetune_by_adapters_gives_the_same_model_again(tmp_path: Path, tiny_model_folder: Path) -> None:
    pytest.importorskip("peft")
    base = read_model_folder(tiny_model_folder)
    command = ["finetune", "--from", str(min(base.schedules)), "--to", str(max(base.schedules))]
    command += ["--model", str(tiny_model_folder), "--steps", "2", "--batch-size", "1", "--threads", "1"]
    for value in ("stage.scenes=16", "loop.warmup_steps=0", "loop.lora_rank=2"):
        command += ["--set", f"finetune.{value}"]
    command += ["--run", str(tmp_path / "run")]
    for name in ("first", "second"):
        result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / name)])
        assert result.exit_code == 0, result.stderr
    first, second = (tmp_path / name / "transformer.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def recipe_on(base: Path, resolutions: dict[str, Any], **finetune: Any) -> Recipe:
    """A finetune by hand, to the largest of its resolutions."""
    largest = max(resolutions, key=int)
    section = {
        "stage": {"scenes": 4},
        "loop": {"steps": 1, "learning_rate": 1e-4, "workers": 0, "device": "cpu"},
        "portions": [{"resolution": int(largest), "batch_size": 1, "share": 1.0}],
        **finetune,
    }
    plain = {"name": "x", "licence": "MIT", "default_resolution": int(largest), "base": str(base)}
    return recipe_from_dict({**plain, "resolutions": resolutions, "finetune": section})


@pytest.mark.parametrize(
    ("resolutions", "finetune", "said"),
    [
        ({"64": {"sides": [1, 2, 4, 8], "first_level": 3}}, {}, "level rows of 64 px are not those of tiny"),
        ({"32": [1, 3, 4], "64": {"sides": [1, 2, 4, 8], "first_level": 0}}, {}, "rows of 32 px are not those of tiny"),
        ({"128": [1, 2, 4, 8, 16]}, {}, "the recipe has no resolution of tiny"),
        ({"32": [1, 2, 4], "128": [1, 2, 4, 8, 16]}, {"levels_from": 128}, "levels_from 128 is no resolution that is"),
    ],
)
def test_level_rows_that_the_base_has_not_are_refused_before_any_work(
    tmp_path: Path, tiny_model_folder: Path, resolutions: dict[str, Any], finetune: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        Maker(recipe_on(tiny_model_folder, resolutions, **finetune), tmp_path / "run").train("finetune")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "resolutions",
    [{"64": {"sides": [1, 2, 4, 8], "first_level": 0}}, {"32": [1, 2, 4], "128": [1, 2, 4, 8, 16]}],
    ids=["one that the base knows", "a new one"],
)
def test_a_recipe_need_not_name_every_resolution_of_its_base(
    tmp_path: Path, tiny_model_folder: Path, resolutions: dict[str, Any]
) -> None:
    maker = Maker(recipe_on(tiny_model_folder, resolutions), tmp_path)
    maker.train("finetune")
    assert maker.made().recipe.schedules.keys() == {int(resolution) for resolution in resolutions}
