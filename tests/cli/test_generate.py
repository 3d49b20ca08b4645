"""`star generate`: what is drawn, where it goes, what is said."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from star_cli.cli import console
from star_cli.cli.generate import _count_passes, _passes
from star_cli.images import read_recipe
from star_cli.names import name_of
from star_cli.pipeline import StarPipeline
from tests.cli.command import Star


def pixels_of(path: Path | str | io.BytesIO) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_picture_lands_in_this_folder_and_its_path_on_stdout(draw: Star, folder: Path) -> None:
    result = draw("a red circle")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a-red-circle-0.png\n", "")
    assert [path.name for path in folder.iterdir()] == ["a-red-circle-0.png"]
    with Image.open(folder / "a-red-circle-0.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (32, 32))


def test_same_call_twice_gives_the_same_bytes_under_a_free_name(draw: Star, folder: Path) -> None:
    assert draw("a red circle").stdout == "a-red-circle-0.png\n"
    assert draw("a red circle").stdout == "a-red-circle-0-2.png\n"
    assert (folder / "a-red-circle-0.png").read_bytes() == (folder / "a-red-circle-0-2.png").read_bytes()


def test_several_prompts_and_num_are_one_batch_in_order(draw: Star, folder: Path) -> None:
    result = draw("a red circle", "a blue square", "--num", 5, "--seed", 3)
    names = [f"{name}-{seed}.png" for name in ("a-red-circle", "a-blue-square") for seed in range(3, 8)]
    assert result.stdout.split() == names
    draw("a blue square", "--seed", 6, "--out", "alone.png")
    assert (folder / "a-blue-square-6.png").read_bytes() == (folder / "alone.png").read_bytes()


def test_more_pictures_than_a_pass_holds_all_come(draw: Star) -> None:
    assert draw("x", "--num", 9).stdout.split() == [f"x-{seed}.png" for seed in range(9)]
    assert len(draw(*"abcdefghi", "--out", "many/").stdout.split()) == 9


def test_pictures_that_are_drawn_singly_are_written_as_they_come(
    draw: Star, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_jobs, drawn = StarPipeline.draw_jobs, []

    def stopped(self: StarPipeline, jobs: Any, **rest: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(jobs)
        return draw_jobs(self, jobs, **rest)

    monkeypatch.setattr(StarPipeline, "draw_jobs", stopped)
    assert draw("x", "--num", 3, "--smooth", 1).exit_code == 130
    assert sorted(path.name for path in folder.iterdir()) == ["x-0.png", "x-1.png"]


def test_ten_million_pictures_take_no_memory_before_the_first(draw: Star, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    draw("x")  # so that all is imported
    monkeypatch.setattr(StarPipeline, "__call__", stop)
    tracemalloc.start()
    try:
        assert draw("x", "--num", 10**7).exit_code == 130
        assert tracemalloc.get_traced_memory()[1] < 100e6  # a list of the passes: 400e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("subjects", [1, 2, 3, 7])
@pytest.mark.parametrize("num", [1, 2, 3, 5, 9])
def test_passes_are_counted_without_making_them(subjects: int, num: int) -> None:
    request: Any = SimpleNamespace(prompts=tuple("abcdefg"[:subjects]), classes=(), num=num, seed=0)
    passes = list(_passes(request, 4))
    assert _count_passes(request, 4) == len(passes)
    assert sum(len(one["prompts"]) * one["num"] for one in passes) == subjects * num


def test_same_prompt_twice_gives_two_files(draw: Star) -> None:
    assert draw("x", "x", "--force").stdout.split() == ["x-0.png", "x-0-2.png"]


def test_flags_reach_the_recipe(draw: Star, folder: Path) -> None:
    values = {"res": 64, "seed": 7, "guidance": 1.5, "top_k": 3, "top_p": 0.5, "temperature": 0.75, "negative": "blue"}
    values |= {"speed": "turbo"}
    flags = [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert draw("a red circle", *flags, "--dtype", "float32", "--device", "cpu").exit_code == 0
    recipe = read_recipe(folder / "a-red-circle-7.png")
    assert recipe | values == recipe
    assert (recipe["prompt"], recipe["model"], recipe["device"]) == ("a red circle", "tiny", "cpu")


def test_recipe_of_before_the_levels_of_speed_means_exact(
    draw: Star, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw("x", "--res", 64)
    recipe = read_recipe(folder / "x-0.png")
    assert recipe.pop("speed") == "exact"
    monkeypatch.setenv("STAR_SPEED", "turbo")
    assert draw("x", "--out", "turbo.png", "--res", 64).exit_code == 0
    monkeypatch.setattr("star_cli.cli.request.read_recipe", lambda _path: recipe)
    assert draw("--from-image", "x-0.png", "--out", "again.png").exit_code == 0
    assert read_recipe(folder / "turbo.png")["speed"] == "turbo"
    assert (folder / "again.png").read_bytes() == (folder / "x-0.png").read_bytes()


def test_model_decides_what_is_not_given(draw: Star, folder: Path) -> None:
    draw("x")
    recipe = read_recipe(folder / "x-0.png")
    assert [recipe[name] for name in ("res", "guidance", "top_k", "top_p")] == [32, 2.0, 12, 0.95]


def test_temperature_0_is_greedy_whatever_the_seed(draw: Star, folder: Path) -> None:
    draw("x", "--temperature", 0, "--num", 3)
    first, *others = [pixels_of(folder / f"x-{seed}.png") for seed in range(3)]
    assert others == [first, first]


def test_prompts_come_from_stdin_one_a_line(draw: Star) -> None:
    assert draw("-", input="# two\na red circle\r\n\n  # and\na blue square").stdout.split() == [
        "a-red-circle-0.png",
        "a-blue-square-0.png",
    ]


@pytest.mark.parametrize(
    "prompt", ["\U0001f534\U0001f468\u200d\U0001f469", "赤い丸", "red\x07\x1b[31m\tcircle", "é" * 300]
)
def test_any_text_is_drawn_and_named_in_ascii(draw: Star, folder: Path, prompt: str) -> None:
    result = draw(prompt, "--json")
    assert result.exit_code == 0, result.stderr
    (path,) = folder.iterdir()
    assert path.name.isascii()
    assert len(path.name) < 80
    assert read_recipe(path)["prompt"] == json.loads(result.stdout)["prompt"] == prompt


def test_names_are_made_of_whole_words() -> None:
    assert name_of("A red circle, left of: a blue square!") == "a-red-circle-left-of-a-blue-square"
    assert name_of("../../etc/passwd") == "etc-passwd"
    assert name_of("Überraschung") == "uberraschung"
    assert name_of("赤い丸") == "picture"
    assert len(name_of("word " * 5000)) <= 60
    assert name_of("x" * 5000) == "x" * 60


# -- again, from a picture --------------------------------------------------------------------------------------------


@pytest.fixture
def first(draw: Star, folder: Path) -> Path:
    draw("a red circle", "--seed", 5, "--top-k", 9, "--negative", "blue", "--res", 64, "--out", "first.png")
    return folder / "first.png"


def test_from_image_repeats_it_to_the_byte(draw: Star, first: Path) -> None:
    result = draw("--from-image", first)
    assert (result.stdout, result.stderr) == ("a-red-circle-5.png\n", "")
    assert first.with_name("a-red-circle-5.png").read_bytes() == first.read_bytes()


@pytest.mark.parametrize("name", ["again.webp", "again.jpg"])
def test_from_image_knows_every_format(draw: Star, first: Path, name: str) -> None:
    draw("--from-image", first, "--out", name)
    assert draw("--from-image", name, "--out", "back.png").exit_code == 0
    assert first.with_name("back.png").read_bytes() == first.read_bytes()


def test_flags_beside_from_image_change_it_and_nothing_else(draw: Star, first: Path) -> None:
    assert draw("a blue square", "--from-image", first, "--seed", 0, "--out", "new.png").exit_code == 0
    changed = {"prompt": "a blue square", "seed": 0}
    assert read_recipe(first.with_name("new.png")) == read_recipe(first) | changed


def test_recipe_keeps_int8_and_repeats_it(draw: Star, first: Path) -> None:
    assert "quantize" not in read_recipe(first)
    draw("--from-image", first, "--quantize", "int8", "--device", "cpu", "--out", "rounded.png")
    rounded = first.with_name("rounded.png")
    assert read_recipe(rounded) == read_recipe(first) | {"quantize": "int8"}
    assert draw("--from-image", rounded, "--out", "again.png").exit_code == 0
    assert first.with_name("again.png").read_bytes() == rounded.read_bytes()
    assert draw("--from-image", rounded, "--quantize", "none", "--out", "back.png").exit_code == 0
    assert first.with_name("back.png").read_bytes() == first.read_bytes()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--dtype", "float16"), "int8 goes with float32 and bfloat16 alone"),
        (("--compat", "official"), "in float32, not int8"),
    ],
)
def test_int8_beside_what_it_cannot_go_with_is_an_error(draw: Star, flags: tuple[str, str], words: str) -> None:
    result = draw("x", "--quantize", "int8", "--device", "cpu", *flags)
    assert result.exit_code == 2
    assert words in result.stderr


def test_another_model_of_the_same_name_is_warned_of(star: Star, first: Path, own_model_folder: Path) -> None:
    config = json.loads((own_model_folder / "config.json").read_text())
    shutil.copyfile(own_model_folder / "vqvae.safetensors", own_model_folder / "text_encoder" / "more.safetensors")
    record = config["files"]["vqvae.safetensors"]
    config["files"]["text_encoder/more.safetensors"] = record
    (own_model_folder / "config.json").write_text(json.dumps(config))
    result = star("generate", "--from-image", first, "--model", own_model_folder, "--out", "new.png")
    assert result.stderr.startswith("warning: the picture was drawn with another tiny (")
    (own_model_folder / "config.json").write_text(json.dumps(config | {"name": "large"}))
    result = star("generate", "--from-image", first, "--model", own_model_folder, "--out", "other.png")
    assert result.stderr.startswith("warning: the picture was drawn with tiny, not with large: ")


def test_recipe_of_a_model_that_is_not_here_says_so(star: Star, first: Path) -> None:
    result = star("generate", "--from-image", first)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: the picture was drawn with 'tiny', which is not here\nhint: name its folder with --model\n"
    )


def test_cached_model_is_found_by_the_recipes_name(
    star: Star, first: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = first.parent / "cache"
    shutil.copytree(tiny_model_folder, cache / "models" / "tiny")
    monkeypatch.setenv("STAR_CACHE", str(cache))
    assert star("generate", "--from-image", first, "--out", "new.png").exit_code == 0
    assert first.with_name("new.png").read_bytes() == first.read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the missing device is there")
def test_device_of_the_recipe_that_is_not_here_is_warned_of(
    draw: Star, folder: Path, tiny_pipeline: StarPipeline
) -> None:
    (image,) = tiny_pipeline("x")
    image.recipe["device"] = "cuda"
    image.save(folder / "gpu.png")
    result = draw("--from-image", "gpu.png")
    assert result.exit_code == 0
    assert result.stderr == "warning: the picture was drawn on cuda, which is not here: the new one may differ\n"


# -- where it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name", "format"),
    [
        (["--out", "a.webp"], "a.webp", "WEBP"),
        (["--out", "a.JPG"], "a.JPG", "JPEG"),
        (["--out", "a.jpeg", "--format", "jpeg"], "a.jpeg", "JPEG"),
        (["--out", "plain", "--format", "webp"], "plain", "WEBP"),
        (["--format", "jpeg"], "x-0.jpg", "JPEG"),
        (["--out", "new/"], "new/x-0.png", "PNG"),
        (["--out", "new/", "--format", "webp"], "new/x-0.webp", "WEBP"),
        (["--out", "."], "x-0.png", "PNG"),
    ],
)
def test_out_and_format_decide_name_and_kind(draw: Star, arguments: list[str], name: str, format: str) -> None:  # noqa: A002
    result = draw("x", *arguments)
    assert (result.exit_code, result.stdout) == (0, f"{name}\n"), result.stderr
    with Image.open(name) as image:
        assert image.format == format


def test_out_dash_writes_the_picture_alone_to_stdout(draw: Star, folder: Path) -> None:
    result = draw("x", "--out", "-")
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    draw("x", "--out", "x.png")
    assert result.stdout_bytes == (folder / "x.png").read_bytes()


def test_force_overwrites_a_file_and_a_name_in_a_folder(draw: Star, folder: Path) -> None:
    for arguments in (["--out", "x.png"], ["--out", "."]):
        name = draw("x", *arguments).stdout.strip()
        (folder / name).write_bytes(b"old")
        assert draw("x", *arguments, "--force").stdout.strip() == name
        assert read_recipe(folder / name)["prompt"] == "x"
    assert len(list(folder.iterdir())) == 2


def test_json_is_one_object_a_line_with_path_and_recipe(draw: Star, folder: Path) -> None:
    lines = draw("x", "--num", 2, "--json").stdout.splitlines()
    for seed, line in enumerate(lines):
        told = json.loads(line)
        assert told.pop("path") == f"x-{seed}.png"
        assert told == read_recipe(folder / f"x-{seed}.png")
    assert len(lines) == 2


# -- what is said -----------------------------------------------------------------------------------------------------

LONG = " ".join(f"word{number}" for number in range(2500))  # some 21,000 characters


def test_words_that_are_not_read_are_named(draw: Star) -> None:
    result = draw("a " * 14 + "red circle")
    assert result.stdout == "a-a-a-a-a-a-a-a-a-a-a-a-a-a-red-circle-0.png\n"
    assert result.stderr == "warning: too long, the model does not read: red circle\n"


def test_prompt_of_20000_characters_is_drawn_and_the_rest_named_in_short(draw: Star, folder: Path) -> None:
    result = draw(LONG)
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: too long, the model does not read: word")
    assert line.endswith("characters)")
    assert len(line) < 300
    (path,) = folder.iterdir()
    assert read_recipe(path)["prompt"] == LONG


def test_flag_without_effect_is_said(draw: Star) -> None:
    assert draw("x", "--out", "-", "--force").stderr == "warning: --force has no effect with --out -\n"


def test_quiet_says_nothing(draw: Star) -> None:
    result = draw(LONG, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_moves_on_a_terminal_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for stream, quiet, shown in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with console.scales("drawing", quiet) as on_scale:
            assert (on_scale is not None) == shown
            if on_scale is not None:
                on_scale(2, 3)
        assert ("drawing" in stream.getvalue()) == shown
        assert ("2/3" in stream.getvalue()) == shown


def test_libraries_stay_silent_unless_debugging(draw: Star, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging
    import warnings

    draw_all = StarPipeline.__call__

    def talkative(self: StarPipeline, *arguments: Any, **options: Any) -> Any:
        warnings.warn("from a library", stacklevel=1)
        logging.getLogger("transformers").warning("from a library")
        return draw_all(self, *arguments, **options)

    monkeypatch.setattr(StarPipeline, "__call__", talkative)
    assert draw("x").stderr == ""
    with pytest.warns(UserWarning, match="from a library"):
        draw("x", "--debug")


def test_a_link_that_leads_nowhere_holds_its_name(draw: Star, folder: Path) -> None:
    (folder / "a-cat-0.png").symlink_to("nowhere")
    result = draw("a cat")
    assert (result.exit_code, result.stdout) == (0, "a-cat-0-2.png\n")
