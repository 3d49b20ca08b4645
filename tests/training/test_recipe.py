"""A whole recipe through the real command; recipes that cannot work are refused before any work."""

from __future__ import annotations

import resource
import tomllib
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from star_cli.checkpoints.folder import read_model_folder
from star_cli.cli.app import app
from star_cli.data.cache import open_cache
from star_cli.data.shapes import HELD_OUT_SEED
from star_cli.data.source import ShapeScenes
from star_cli.errors import OptionError, OutputError
from star_cli.pipeline import StarPipeline
from star_cli.training.fields import to_toml
from star_cli.training.making import Maker
from star_cli.training.recipe_file import RECIPES, find_recipe, read_recipe, recipe_from_dict
from star_cli.training.recipe_sources import RecipeSources
from star_cli.training.star_batches import StarBatch
from star_cli.training.star_sources import CachedBatches

TINY = Path(__file__).parent / "tiny.toml"
STABLE = ["stable.first_scale=1", "stable.loop={ steps = 2, learning_rate = 1e-3 }"]
STABLE += ["stable.portions=[{ resolution = 32, batch_size = 2, share = 1.0 }]"]


def test_one_command_makes_a_model_that_draws(tmp_path: Path) -> None:
    out, run = tmp_path / "model", tmp_path / "run"
    command = ["train", "all", "--recipe", str(TINY), "--out", str(out), "--run", str(run), "--threads", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(out)
    folder = read_model_folder(out)
    assert folder.name == "tiny-shapes"
    assert folder.schedules == read_recipe(TINY).schedules
    assert folder.transformer.codebook_size == folder.vqvae.codebook_size < 32  # without codes that nothing chooses
    assert set(folder.provenance["seconds"]) == {"clip", "vqvae", "star", "finetune"}
    pipe = StarPipeline.from_pretrained(str(out))
    small, large = pipe("a red circle", res=32)[0], pipe("a red circle", res=64)[0]
    assert small.pixels.shape == (32, 32, 3)
    assert large.pixels.shape == (64, 64, 3)
    assert list((run / "star").glob("preview-*.png"))
    assert "held-out loss 32" in (run / "star" / "metrics.jsonl").read_text()
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
            assert schedule.last_side * recipe.vqvae.model.factor == resolution


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


def test_recipe_written_out_is_the_same_recipe() -> None:
    for path in (TINY, find_recipe("star-shapes")):
        recipe = read_recipe(path)
        text = recipe.to_toml()
        assert recipe_from_dict(tomllib.loads(text)) == recipe
        assert "# Optimiser steps of the stage." in text


@pytest.mark.parametrize("name", ["star-shapes", "star-icons"])
def test_every_field_that_is_written_out_is_explained(name: str) -> None:
    stable = [change.replace("resolution = 32", "resolution = 256") for change in STABLE]
    lines = read_recipe(find_recipe(name), stable).to_toml().splitlines()
    bare = [line for before, line in pairwise(["", *lines]) if line[:1] not in ("", "#", "[") and before[:1] != "#"]
    assert not bare


def test_the_recipe_of_a_run_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    maker = Maker(read_recipe(TINY), tmp_path)
    maker._write_recipe()
    before = (tmp_path / "recipe.toml").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            maker._write_recipe()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "recipe.toml").read_bytes() == before


def test_a_model_knows_the_words_that_its_text_encoder_read(tmp_path: Path) -> None:
    for name in ("all", "clip"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    recipe = read_recipe(TINY, [f"data.source={tmp_path / 'all'}", "clip.source=shapes:8"])
    assert Maker(recipe, tmp_path / "run")._words == ShapeScenes(1).words
    assert RecipeSources(recipe, tmp_path / "run").words("") is None  # nobody counts those of a folder


def test_single_fields_are_changed_and_checked() -> None:
    recipe = read_recipe(TINY, ["star.loop.steps=9", "star.portions.0.batch_size=1", "name=mine"])
    assert recipe.star is not None
    assert (recipe.name, recipe.star.loop.steps, recipe.star.portions[0].batch_size) == ("mine", 9, 1)
    for change, said in (
        ("star.loop.stepps=9", "stepps"),
        ("sta.loop.steps=9", "unknown field sta"),
        ("star.model.levels=3", "levels is 3"),
        ("star.loop=3", "wrong kind"),
        ('star.loop.steps="many"', "steps must be a whole number, not 'many'"),
    ):
        with pytest.raises(OptionError, match=said):
            read_recipe(TINY, [change])


def test_data_stands_for_all_sources_of_a_recipe() -> None:
    path = find_recipe("star-icons")
    assert read_recipe(path).clip.source  # type: ignore[union-attr]
    recipe = read_recipe(path, data="shapes:8")
    parts = [recipe.clip, recipe.vqvae, recipe.star, recipe.finetune]
    assert (recipe.data.source, [part.source for part in parts if part]) == ("shapes:8", [""] * 4)
    changed = read_recipe(path, ["clip.source=shapes:9"], data="shapes:8")
    assert (changed.data.source, changed.clip.source) == ("shapes:8", "shapes:9")  # type: ignore[union-attr]


def test_batch_size_keeps_the_proportion_of_portions() -> None:
    recipe = read_recipe(find_recipe("star-shapes")).with_batch_size("star", 8)
    assert recipe.star is not None
    assert [portion.batch_size for portion in recipe.star.portions] == [16, 8]


def test_stages_one_by_one_make_what_one_command_makes(tmp_path: Path) -> None:
    tiny = ["--recipe", str(TINY), "--threads", "1"]
    together = ["train", "all", *tiny, "--out", str(tmp_path / "all"), "--run", str(tmp_path / "run")]
    assert CliRunner().invoke(app, together).exit_code == 0
    alone = [*tiny, "--run", str(tmp_path / "steps")]
    too_early = CliRunner().invoke(app, ["train", "star", *alone])
    assert too_early.exit_code == 1
    assert "stage star needs stage clip" in too_early.stderr
    for stage in ("clip", "vqvae", "star"):
        result = CliRunner().invoke(app, ["train", stage, *alone])
        assert result.exit_code == 0, result.stderr
        assert result.stdout.strip() == str(tmp_path / "steps")
    finish = ["train", "all", *tiny, "--out", str(tmp_path / "each"), "--run", str(tmp_path / "steps")]
    assert CliRunner().invoke(app, finish).exit_code == 0
    assert read_model_folder(tmp_path / "each").hash == read_model_folder(tmp_path / "all").hash


def test_never_resume_holds_for_the_stage_that_is_asked_for(tmp_path: Path) -> None:
    """Stages behind it serve as they are; a stage that was begun is refused, and its run's recipe left as it is."""
    run = tmp_path / "run"
    anew = ["--recipe", str(TINY), "--threads", "1", "--run", str(run), "--resume", "never"]
    for stage in ("clip", "vqvae", "star"):
        result = CliRunner().invoke(app, ["train", stage, *anew])
        assert result.exit_code == 0, result.stderr
    recipe = (run / "recipe.toml").read_bytes()
    for stage in ("clip", "vqvae", "star"):
        again = CliRunner().invoke(app, ["train", stage, *anew, "--steps", "9"])
        assert again.exit_code == 1
        assert f"error: {run / stage} holds a run already (checkpoint-0000000" in again.stderr
    assert (run / "recipe.toml").read_bytes() == recipe
    together = CliRunner().invoke(app, ["train", "all", *anew, "--out", str(tmp_path / "model")])
    assert together.exit_code == 1
    assert f"{run / 'clip'} holds a run already" in together.stderr


def test_what_decides_the_batches_may_not_change_on_the_way(tmp_path: Path) -> None:
    alone = ["--recipe", str(TINY), "--threads", "1", "--run", str(tmp_path / "run")]
    for stage in ("clip", "vqvae", "star"):
        result = CliRunner().invoke(app, ["train", stage, *alone, "--steps", "2"])
        assert result.exit_code == 0, result.stderr
    put(tmp_path / "photos")
    for stage, change, said in (
        ("clip", ["--set", "seed=4"], "data.seed 3 -> 4"),
        ("vqvae", ["--data", str(tmp_path / "photos")], "data.pictures generated scenes -> 2"),
        ("star", ["--batch-size", "1"], "data.portions.1.batch_size 2 -> 1"),
        ("star", ["--data", str(tmp_path / "photos")], "data.pictures generated scenes -> 3"),
    ):
        result = CliRunner().invoke(app, ["train", stage, *alone, *change, "--steps", "3"])
        assert result.exit_code == 1
        assert "error: this run was begun with other settings; what changed: data." in result.stderr
        assert said in result.stderr
    result = CliRunner().invoke(app, ["train", "star", *alone, "--steps", "3"])
    assert result.exit_code == 0, result.stderr


def put(folder: Path) -> None:
    """Three pictures."""
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 32), (80 * number, 0, 0)).save(folder / f"{number}.png")


def test_transformer_on_the_parts_of_a_model(tmp_path: Path, tiny_model_folder: Path) -> None:
    base = read_model_folder(tiny_model_folder)
    resolution = min(base.schedules)
    command = ["train", "star", "--recipe", str(TINY), "--model", str(tiny_model_folder), "--threads", "1"]
    sections = {
        "resolutions": {str(resolution): list(base.schedules[resolution].sides)},
        "default_resolution": resolution,
        "star.portions": [{"resolution": resolution, "batch_size": 2, "share": 1.0}],
    }
    recipe = tomllib.loads(TINY.read_text(encoding="utf-8"))
    del recipe["finetune"]
    for path, value in sections.items():
        *parents, last = path.split(".")
        place = recipe
        for key in parents:
            place = place[key]
        place[last] = value
    (tmp_path / "own.toml").write_text(to_toml(recipe), encoding="utf-8")
    command[3] = str(tmp_path / "own.toml")
    result = CliRunner().invoke(app, [*command, "--run", str(tmp_path / "run"), "--out", str(tmp_path / "model")])
    assert result.exit_code == 0, result.stderr
    made = read_model_folder(tmp_path / "model")
    assert made.files["vqvae.safetensors"].size_bytes > 0
    assert made.schedules.keys() == {resolution}
    assert made.transformer.codebook_size == base.vqvae.codebook_size != recipe["vqvae"]["model"]["codebook_size"]


def test_shown_recipe_is_a_recipe(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "show", "--recipe", str(TINY), "--set", "seed=8"])
    assert result.exit_code == 0, result.stderr
    (tmp_path / "copy.toml").write_text(result.stdout, encoding="utf-8")
    assert read_recipe(tmp_path / "copy.toml") == read_recipe(TINY, ["seed=8"])


def test_a_stable_head_is_one_more_stage(tmp_path: Path) -> None:
    section = ["loop.steps=2", "loop.learning_rate=1e-3", "first_scale=2", "stage.scenes=6"]
    section += ["portions=[{ resolution = 32, batch_size = 2, share = 1.0 }]"]
    command = ["train", "all", "--recipe", str(TINY), "--out", str(tmp_path / "model"), "--run", str(tmp_path / "run")]
    command += [f"--set=stable.{field}" for field in section]
    result = CliRunner().invoke(app, [*command, "--threads", "1"])
    assert result.exit_code == 0, result.stderr
    made = read_model_folder(tmp_path / "model")
    assert made.transformer.stable_head
    assert set(made.provenance["seconds"]) == {"clip", "vqvae", "star", "finetune", "stable"}
    pipe = StarPipeline.from_pretrained(str(tmp_path / "model"))
    assert pipe("a red circle", res=32)[0].recipe["stable"] is True


def test_stages_behind_a_run_stay_as_they_were_trained(tmp_path: Path) -> None:
    alone = ["--recipe", str(TINY), "--threads", "1", "--run", str(tmp_path / "run")]
    narrower = ["--set", "clip.stage.text_width=64", "--set", "vqvae.model.code_dim=6"]
    for stage, change in (("vqvae", narrower[2:]), ("clip", narrower[:2])):
        assert CliRunner().invoke(app, ["train", stage, *alone, *change]).exit_code == 0
    result = CliRunner().invoke(app, ["train", "star", *alone, "--out", str(tmp_path / "model")])
    assert result.exit_code == 0, result.stderr
    made = read_model_folder(tmp_path / "model")
    assert (made.transformer.text_width, made.transformer.code_dim) == (64, 6)
    changed = CliRunner().invoke(
        app, ["train", "star", *alone, "--set", "star.model.depth=3", "--set", "star.loop.steps=9"]
    )
    assert changed.exit_code == 1
    assert "error:" in changed.stderr


def test_a_stage_may_learn_from_a_source_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an endless one the first scenes' tokens are made once, and their captions are written anew."""
    run = tmp_path / "run"
    command = ["train", "star", "--recipe", str(TINY), "--run", str(run), "--threads", "1"]
    for stage in ("clip", "vqvae"):
        assert CliRunner().invoke(app, ["train", stage, *command[2:]]).exit_code == 0
    seen: list[StarBatch] = []
    make = CachedBatches.batch

    def note(batches: CachedBatches, step: int) -> StarBatch:
        seen.append(make(batches, step))
        return seen[-1]

    monkeypatch.setattr(CachedBatches, "batch", note)
    own = ["--set", "star.source=shapes:40", "--set", "star.loop.steps=40", "--set", "star.loop.workers=0"]
    result = CliRunner().invoke(app, [*command, *own])
    assert result.exit_code == 0, result.stderr
    cache = open_cache(run / "tokens-star")
    assert (len(cache), set(cache.sides)) == (6, {32})
    whole = cache.tokens(32, range(6))
    for batch in seen:
        assert batch.tokens is not None
        assert all((row == whole[:, : batch.tokens.shape[1]]).all(1).any() for row in batch.tokens)
    assert len({caption for batch in seen for caption in batch.captions}) > 7  # more than the cache holds
    again = CliRunner().invoke(app, [*command, *own])  # finished: neither cache nor steps
    assert again.exit_code == 0, again.stderr


@pytest.mark.parametrize("stage", ["clip", "vqvae"])
def test_the_first_stages_may_learn_from_sources_of_their_own(tmp_path: Path, stage: str) -> None:
    run = tmp_path / "run"
    command = ["train", stage, "--recipe", str(TINY), "--run", str(run), "--threads", "1"]
    own = tmp_path / "own"
    own.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 40), (20 * number, 90, 200)).save(own / f"{number}.png")
        (own / f"{number}.txt").write_text(f"colour {number}")
    result = CliRunner().invoke(app, [*command, "--set", f"{stage}.source={own}"])
    assert result.exit_code == 0, result.stderr
    checkpoint = torch.load(sorted((run / stage).glob("checkpoint-*.pt"))[-1], weights_only=True)
    pictures = int(checkpoint["settings"]["data"]["pictures"])  # stage 1 holds one out
    assert pictures == {"clip": 12, "vqvae": 11}[stage]
    wrong = CliRunner().invoke(app, [*command, "--set", f"{stage}.source={tmp_path / 'nowhere'}"])
    assert (wrong.exit_code, "nowhere" in wrong.stderr) == (2, True)


def test_a_transformer_is_judged_by_the_pictures_that_are_named(tmp_path: Path) -> None:
    run, own = tmp_path / "run", tmp_path / "own"
    own.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 40), (20 * number, 90, 200)).save(own / f"{number}.png")
    rest = ["--recipe", str(TINY), "--run", str(run), "--threads", "1"]
    for stage in ("clip", "vqvae"):
        assert CliRunner().invoke(app, ["train", stage, *rest]).exit_code == 0
    command = ["train", "star", *rest, "--set", f"star.source={own}"]
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, "stage star has no held-out pictures" in refused.stderr) == (2, True)
    result = CliRunner().invoke(app, [*command, "--set", f"star.held_out={own}"])
    assert result.exit_code == 0, result.stderr
    assert "held-out error 32" in (run / "star" / "metrics.jsonl").read_text()


def test_what_a_stage_is_judged_by(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    sources, own = RecipeSources(read_recipe(TINY), tmp_path / "run"), str(tmp_path)
    of_scenes, others = sources.held_out("", "", 4), sources.held_out("shapes:9", own, 4)
    for scenes in (of_scenes, others):
        assert isinstance(scenes, ShapeScenes)
        assert (scenes.first_seed, len(scenes)) == (HELD_OUT_SEED, 4)
    assert sources.held_out("", own, 4) is None
    named, few = sources.held_out(own, "", 4), sources.held_out(own, own, 2)
    assert named is not None
    assert few is not None
    assert (len(named), [few.name(row) for row in range(2)]) == (3, [named.name(row) for row in range(2)])


def test_a_vqvae_may_start_from_that_of_a_model(tmp_path: Path, tiny_model_folder: Path) -> None:
    base = read_model_folder(tiny_model_folder).vqvae
    settings = {
        "code_dim": base.code_dim,
        "channels": base.channels,
        "multipliers": list(base.multipliers),
        "blocks": base.blocks,
        "patch": base.patch,
        "groups": base.groups,
    }
    run = tmp_path / "run"
    command = ["train", "vqvae", "--recipe", str(TINY), "--run", str(run), "--threads", "1"]
    command += ["--set", "vqvae.loop.steps=1", "--set", "vqvae.loop.learning_rate=1e-9"]
    command += [part for name, value in settings.items() for part in ("--set", f"vqvae.model.{name}={value}")]
    result = CliRunner().invoke(app, [*command, "--set", f"vqvae.start_from={tiny_model_folder}"])
    assert result.exit_code == 0, result.stderr
    given = read_model_folder(tiny_model_folder).load_vqvae().state_dict()
    checkpoint = torch.load(next((run / "vqvae").glob("checkpoint-*.pt")), weights_only=True)
    learned = {name.removeprefix("vqvae."): tensor for name, tensor in checkpoint["stage"].items()}
    for name in ("encoder.stem.weight", "decoder.head.weight", "before_quantizer.weight"):
        assert torch.allclose(learned[name], given[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("star.portions=[]", r"\[star\] has no portions"),
        ("finetune.portions=[]", r"\[finetune\] has no portions"),
        ("resolutions.abc=[1,2]", "resolutions.abc: a resolution is a whole number of pixels"),
        ("star.loop.lora_rank=4", "begins with random weights"),
        ("stable.first_scale=3", "stable.first_scale 3 refines none of 3 scales at 32 px"),
        ("stable.portions.0.scales=1", "stable.first_scale 1 refines none of 1 scales at 32 px"),
        ("stable.first_scale=-1", r"\[stable\] needs at least one block, and a first_scale of at least 0"),
        ("stable.blocks=0", r"\[stable\] needs at least one block"),
        ('stable.version="2048"', "version must be one of 1024, new, not 2048"),
        ("star.stage.keep_tokens=3", "keep_tokens 3 leaves none of the last scale at 32 px"),
        ("star.stage.own_draws=0.5", "own_draws needs pictures, not their tokens"),
        ("clip.stage.reading_share=5.0", "reading_share must be from 0 to 1"),
        ("clip.stage.reading_batch_size=0", "reading_batch_size must be at least 1"),
        ("finetune.levels_from=64", "levels_from 64 is no resolution that is trained before"),
        ("resolutions.32={ sides = [1, 2, 4], first_levl = 0 }", "no field first_levl"),
        ("star.loop.clip_norm=-1", "clip_norm must be positive"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(change: str, said: str) -> None:
    read_recipe(TINY, STABLE)
    with pytest.raises(OptionError, match=said):
        read_recipe(TINY, [*STABLE, change])


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        (["star.source=shapes:40"], True),  # their tokens are cached
        (["star.source=shapes:40", "star.stage.scenes=0"], False),
        (["data.source=photos"], False),
        (["data.source=photos", "data.cache=tokens"], True),
        (["data.source=photos", "data.cache=tokens", "star.source=photos"], False),
    ],
)
def test_own_draws_and_tokens_that_are_cached(changes: list[str], is_refused: bool) -> None:
    changes = [*changes, "star.stage.own_draws=0.5"]
    with pytest.raises(OptionError, match="own_draws needs pictures") if is_refused else nullcontext():
        read_recipe(TINY, changes)


def test_schedules_that_do_not_fit_the_base_models_vqvae_are_refused_before_any_work(tmp_path: Path) -> None:
    command = ["train", "star", "--recipe", str(TINY), "--model", "star-shapes", "--run", str(tmp_path / "run")]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "error: the schedule of 32 px ends at" in result.stderr
    assert "hint: the VQVAE of star-shapes makes one token of" in result.stderr
