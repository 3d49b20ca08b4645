"""What models and options beyond the usual draw: classes, stable sampling, the published code's way, a T5 reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.errors import OptionError
from star_cli.generated import GeneratedImage
from star_cli.images import read_recipe, to_uint8, to_uint8_truncated
from star_cli.models.config import TextEncoderConfig
from star_cli.pipeline import StarPipeline
from tests.cli.command import Star
from tests.conftest import TINY_TRANSFORMER, write_tiny_folder
from tests.models.test_text import t5_folder

Load = Callable[[Path], StarPipeline]


@pytest.fixture(scope="module")
def load() -> Load:
    loaded: dict[Path, StarPipeline] = {}

    def once(folder: Path) -> StarPipeline:
        if folder not in loaded:
            loaded[folder] = StarPipeline.from_pretrained(folder, device="cpu", dtype="float32")
        return loaded[folder]

    return once


def same(one: GeneratedImage, other: GeneratedImage) -> bool:
    return torch.equal(one.pixels, other.pixels)


# -- classes ----------------------------------------------------------------------------------------------------------


def test_class_and_seed_decide_the_image_whatever_the_batch(load: Load, tiny_class_folder: Path) -> None:
    pipe = load(tiny_class_folder)
    first, second, third = pipe(classes=[207, "golden retriever", 3], seed=1)
    assert same(first, second)
    assert not same(first, third)
    assert same(pipe(classes=3, seed=1)[0], third)
    assert not same(pipe(classes=3, seed=2)[0], third)
    assert (first.recipe["class"], "prompt" in first.recipe, pipe.words_cut("x")) == (207, False, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompts": "a cat"}, "model tiny-class draws a class, not words"),
        ({"classes": 3, "negative": "a cat"}, "draws a class: --negative has no meaning"),
        ({}, "there is no class"),
        ({"classes": 1000}, "--class must be a number from 0 to 999 or a name, not 1000"),
        ({"classes": [0, -1]}, "--class must be a number from 0 to 999 or a name, not -1"),
    ],
)
def test_class_models_refuse_what_is_no_class(
    load: Load, tiny_class_folder: Path, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionError, match=sentence):
        load(tiny_class_folder)(**arguments)


def test_text_models_refuse_classes(tiny_pipeline: StarPipeline) -> None:
    with pytest.raises(OptionError, match="model tiny draws words, not a class"):
        tiny_pipeline(classes=3)


def test_command_draws_classes_and_repeats_them(star: Star, folder: Path, tiny_class_folder: Path) -> None:
    model = ("--model", tiny_class_folder)
    result = star("generate", "--class", "golden retriever", "--class", 3, *model)
    assert (result.stdout.split(), result.stderr) == (["class-207-0.png", "class-3-0.png"], "")
    assert read_recipe(folder / "class-207-0.png")["class"] == 207
    again = star("generate", "--from-image", "class-3-0.png", "--out", "again.png", *model)
    assert again.exit_code == 0, again.stderr
    assert (folder / "again.png").read_bytes() == (folder / "class-3-0.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a cat"], "error: model tiny-class draws a class, not words"),
        (["a cat", "--class", "3"], "error: a prompt and --class are given"),
        (["--class", "1000"], "error: --class must be a number from 0 to 999 or a name, not 1000"),
        (["--class", "goldn retriever"], "error: --class 'goldn retriever' is no class of this model"),
        (["--class", "3", "--negative", "x"], "error: model tiny-class draws a class: --negative has no meaning"),
        ([], "error: there is no prompt"),
    ],
)
def test_command_says_what_a_class_model_draws(
    star: Star, tiny_class_folder: Path, arguments: list[str], sentence: str
) -> None:
    result = star("generate", *arguments, "--model", tiny_class_folder)
    assert result.exit_code == 2
    assert result.stderr.startswith(sentence)
    assert "hint: " in result.stderr or "1000" in sentence


def test_command_says_that_a_text_model_draws_no_class(draw: Star) -> None:
    result = draw("--class", "3")
    assert (result.exit_code, result.stderr.splitlines()[0]) == (2, "error: model tiny draws words, not a class")


# -- stable sampling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_stable_sampling_is_the_default_where_the_head_is(
    load: Load, tiny_stable_folder: Path, guidance: float
) -> None:
    pipe = load(tiny_stable_folder)
    options = replace(pipe.defaults, guidance=guidance)
    (usual,) = pipe("a red circle", res=64, options=options)
    (asked,) = pipe("a red circle", res=64, options=replace(options, stable=True))
    (plain,) = pipe("a red circle", res=64, options=replace(options, stable=False))
    assert same(usual, asked)
    assert not same(usual, plain)
    assert [image.recipe["stable"] for image in (usual, asked, plain)] == [True, True, False]
    assert all(torch.equal(*pair) for pair in zip(usual.token_maps[:2], plain.token_maps[:2], strict=True))


def test_stable_sampling_keeps_images_of_a_batch_apart(load: Load, tiny_stable_folder: Path) -> None:
    pipe = load(tiny_stable_folder)
    batch = pipe(["a red circle", "a blue square"], num=2, res=64)
    alone = [*pipe("a red circle", num=2, res=64), *pipe("a blue square", num=2, res=64)]
    assert all(same(one, other) for one, other in zip(batch, alone, strict=True))


def test_stable_sampling_at_temperature_0_does_not_ask_the_seed(load: Load, tiny_stable_folder: Path) -> None:
    pipe = load(tiny_stable_folder)
    first, second = pipe("a red circle", num=2, res=64, options=replace(pipe.defaults, temperature=0))
    assert same(first, second)


def test_stable_sampling_needs_the_head(draw: Star, tiny_pipeline: StarPipeline) -> None:
    with pytest.raises(OptionError, match="these weights have no head for stable sampling"):
        tiny_pipeline("x", options=replace(tiny_pipeline.defaults, stable=True))
    result = draw("x", "--stable")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --stable: these weights have no head for stable sampling\n")
    assert draw("x", "--no-stable").exit_code == 0


def test_command_repeats_stable_sampling_from_the_recipe(star: Star, folder: Path, tiny_stable_folder: Path) -> None:
    model = ("--model", tiny_stable_folder)
    for flag in ("--stable", "--no-stable"):
        name = f"{flag.strip('-')}.png"
        assert star("generate", "x", flag, "--out", name, *model).exit_code == 0
        assert star("generate", "--from-image", name, "--out", f"again-{name}", *model).exit_code == 0
        assert (folder / name).read_bytes() == (folder / f"again-{name}").read_bytes()


# -- the published code's way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "class", "stable"])
def test_official_draws_one_image_and_leaves_the_global_stream_alone(
    load: Load, tiny_model_folder: Path, tiny_class_folder: Path, tiny_stable_folder: Path, kind: str
) -> None:
    pipe = load({"text": tiny_model_folder, "class": tiny_class_folder, "stable": tiny_stable_folder}[kind])
    subject: dict[str, Any] = {"classes": 207} if kind == "class" else {"prompts": "a red circle"}
    options = replace(pipe.defaults, compat="official")
    state = torch.get_rng_state()
    first, second, other = (pipe(**subject, seed=seed, options=options)[0] for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second)
    assert not same(first, other)
    assert first.recipe["compat"] == "official"
    assert not same(first, pipe(**subject, seed=5)[0])  # another random stream


def test_official_takes_tokens_as_one_generator_gives_them(load: Load, tiny_model_folder: Path) -> None:
    pipe = load(tiny_model_folder)
    (image,) = pipe("a red circle", seed=3, options=replace(pipe.defaults, compat="official", guidance=0))
    condition = pipe.text_encoder.encode(["a red circle"]) if pipe.text_encoder else None
    assert condition is not None
    with torch.no_grad():
        prompted = pipe.transformer.prompt(condition)
        schedule = pipe.schedules[32]
        start = pipe.transformer.embed_start(prompted, schedule)
        logits = pipe.transformer.logits(
            pipe.transformer.run_blocks(start, prompted, schedule, schedule.slice(0)), prompted
        )
    from star_cli.generation.filtering import filter_logits

    likely = filter_logits(logits, pipe.defaults.top_k, pipe.defaults.top_p).softmax(-1)
    drawn = torch.multinomial(likely[0], 1, replacement=True, generator=torch.Generator().manual_seed(3))
    assert image.token_maps[0].item() == drawn.item()


def test_pixels_are_rounded_down_as_published() -> None:
    pixels = torch.linspace(-1, 1, 300).view(3, 10, 10)
    down, nearest = to_uint8_truncated(pixels), to_uint8(pixels)
    assert torch.equal(down.double(), ((pixels + 1) * 0.5 * 255).permute(1, 2, 0).double().floor())
    assert int(down.max()) == 255
    assert (nearest.int() - down.int()).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["x", "y"], "error: --compat official draws one image a call, not 2"),
        (["x", "--num", "3"], "error: --compat official draws one image a call, not 3"),
        (["x", "--dtype", "bfloat16"], "error: --compat official needs the weights in float32, not bfloat16"),
    ],
)
def test_official_is_refused_where_it_cannot_be(draw: Star, arguments: list[str], sentence: str) -> None:
    result = draw(*arguments, "--compat", "official")
    assert result.exit_code == 2
    assert result.stderr.startswith(sentence)
    assert "\nhint: " in result.stderr


def test_command_repeats_the_official_way_from_the_recipe(draw: Star, folder: Path) -> None:
    assert draw("x", "--compat", "official", "--out", "one.png").exit_code == 0
    assert draw("--from-image", "one.png", "--out", "two.png").exit_code == 0
    assert (folder / "one.png").read_bytes() == (folder / "two.png").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["text", "class", "stable"])
def test_official_draws_under_autocast_on_a_gpu(
    tiny_model_folder: Path, tiny_class_folder: Path, tiny_stable_folder: Path, kind: str
) -> None:
    folder = {"text": tiny_model_folder, "class": tiny_class_folder, "stable": tiny_stable_folder}[kind]
    pipe = StarPipeline.from_pretrained(folder, device="cuda", dtype="float32")
    subject: dict[str, Any] = {"classes": 207} if kind == "class" else {"prompts": "a red circle"}
    options = replace(pipe.defaults, compat="official")
    first, second = (pipe(**subject, seed=5, options=options)[0] for _ in range(2))
    assert same(first, second)
    assert first.pixels.float().std() > 1


# -- T5 ---------------------------------------------------------------------------------------------------------------


def test_a_model_that_reads_with_t5_draws(tmp_path: Path) -> None:
    t5_folder(tmp_path / "text")
    config = TextEncoderConfig(kind="t5", width=16, max_tokens=120, pooling="mean_with_padding", clean_captions=True)
    folder = write_tiny_folder(
        tmp_path / "tiny-t5", replace(TINY_TRANSFORMER, text_width=16), tmp_path / "text", config
    )
    pipe = StarPipeline.from_pretrained(folder, device="cpu", dtype="float32")
    cat, cleaned, dog = pipe(["a cat", "A <b>CAT</b>", "a dog"])
    assert same(cat, cleaned)
    assert not same(cat, dog)
    assert pipe.text_encoder is not None
    assert pipe.text_encoder.encode(["a cat"]).states.shape == (1, 120, 16)
