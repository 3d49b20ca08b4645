"""Prompt to picture: what decides an image, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import star_cli
from star_cli.checkpoints.folder import read_model_folder
from star_cli.errors import OptionError
from star_cli.generated import GeneratedImage
from star_cli.generation.options import LARGEST_SEED, SamplingOptions
from star_cli.hardware import choose_device, choose_dtype
from star_cli.jobs import ImageJob
from star_cli.models.schedule import ScaleSchedule
from star_cli.pipeline import StarPipeline

PROMPTS = ["a red circle", "a blue square", "a green triangle"]


def same_tokens(first: GeneratedImage, second: GeneratedImage) -> bool:
    pairs = zip(first.token_maps, second.token_maps, strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def pipeline_of(pipe: StarPipeline, **changes: Any) -> StarPipeline:
    """The same parts in a pipeline with something changed."""
    parts: dict[str, Any] = {
        "name": pipe.name,
        "model_hash": pipe.model_hash,
        "transformer": pipe.transformer,
        "vqvae": pipe.vqvae,
        "text_encoder": pipe.text_encoder,
        "schedules": pipe.schedules,
        "sampling": pipe.defaults,
    }
    return StarPipeline(**{**parts, **changes})


# -- what decides an image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("res", [32, 64])
def test_seed_decides_image_whatever_the_batch(tiny_pipeline: StarPipeline, res: int) -> None:
    batch = tiny_pipeline("a red circle", seed=0, num=8, res=res)
    for seed in (0, 5, 7):
        (alone,) = tiny_pipeline("a red circle", seed=seed, res=res)
        assert same_tokens(alone, batch[seed])
        assert torch.equal(alone.pixels, batch[seed].pixels)
        assert alone.recipe == batch[seed].recipe


def test_prompt_decides_image_whatever_stands_beside_it(tiny_pipeline: StarPipeline) -> None:
    together = tiny_pipeline(PROMPTS, seed=3)
    reversed_order = tiny_pipeline(PROMPTS[::-1], seed=3)[::-1]
    alone = [tiny_pipeline(prompt, seed=3)[0] for prompt in PROMPTS]
    for one, other, single in zip(together, reversed_order, alone, strict=True):
        assert same_tokens(one, single)
        assert same_tokens(other, single)


def test_passes_of_any_size_draw_the_same(tiny_pipeline: StarPipeline) -> None:
    whole = tiny_pipeline(PROMPTS, num=3)
    split = pipeline_of(tiny_pipeline, max_batch=2)(PROMPTS, num=3)
    assert [image.recipe for image in split] == [image.recipe for image in whole]
    assert all(same_tokens(one, other) for one, other in zip(split, whole, strict=True))


def test_same_call_twice_draws_the_same(tiny_pipeline: StarPipeline) -> None:
    first, second = (tiny_pipeline("a red circle", seed=1)[0] for _ in range(2))
    assert same_tokens(first, second)
    assert torch.equal(first.pixels, second.pixels)
    assert first.recipe == second.recipe


def test_global_random_state_plays_no_part(tiny_pipeline: StarPipeline) -> None:
    torch.manual_seed(1)
    (first,) = tiny_pipeline("a red circle")
    state = torch.get_rng_state()
    torch.manual_seed(2)
    (second,) = tiny_pipeline("a red circle")
    assert same_tokens(first, second)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"negative": "a dog"},
        {"options": SamplingOptions(guidance=0.0, top_k=12, top_p=0.95)},
        {"options": SamplingOptions(guidance=2.0, top_k=1, top_p=0.95)},
        {"options": SamplingOptions(guidance=2.0, top_k=12, top_p=0.95, temperature=3.0)},
    ],
)
def test_each_option_has_an_effect(tiny_pipeline: StarPipeline, change: dict[str, Any]) -> None:
    plain, changed = tiny_pipeline("a red circle", res=64), tiny_pipeline("a red circle", res=64, **change)
    assert not same_tokens(plain[0], changed[0])


def test_prompt_has_an_effect(tiny_pipeline: StarPipeline) -> None:
    assert not same_tokens(*tiny_pipeline(PROMPTS[:2]))


def test_temperature_zero_draws_the_same_for_every_seed(tiny_pipeline: StarPipeline) -> None:
    first, second = tiny_pipeline("a red circle", num=2, options=SamplingOptions(temperature=0.0))
    assert same_tokens(first, second)


# -- what comes back --------------------------------------------------------------------------------------------------


def test_images_come_prompt_by_prompt_with_rising_seeds(tiny_pipeline: StarPipeline) -> None:
    images = tiny_pipeline(PROMPTS[:2], seed=40, num=3)
    found = [(image.recipe["prompt"], image.recipe["seed"]) for image in images]
    assert found == [(prompt, seed) for prompt in PROMPTS[:2] for seed in (40, 41, 42)]


@pytest.mark.parametrize(("res", "sides"), [(32, [1, 2, 4]), (64, [1, 2, 4, 8])])
def test_image_has_pixels_and_tokens_of_its_resolution(tiny_pipeline: StarPipeline, res: int, sides: list[int]) -> None:
    (image,) = tiny_pipeline("a red circle", res=res)
    assert image.pixels.shape == (res, res, 3)
    assert image.pixels.dtype == torch.uint8
    assert image.to_pil().size == (res, res)
    assert [tuple(token_map.shape) for token_map in image.token_maps] == [(side, side) for side in sides]


def test_recipe_says_all_that_decides_the_image(tiny_pipeline: StarPipeline, tiny_model_folder: Path) -> None:
    (image,) = tiny_pipeline("a red circle", seed=7, negative="blue")
    assert image.recipe == {
        "prompt": "a red circle",
        "negative": "blue",
        "res": 32,
        "seed": 7,
        "guidance": 2.0,
        "top_k": 12,
        "top_p": 0.95,
        "temperature": 1.0,
        "smooth": 0,
        "stable": False,
        "compat": "none",
        "speed": "exact",
        "model": "tiny",
        "model_hash": read_model_folder(tiny_model_folder).hash,
        "device": "cpu",
        "dtype": "float32",
        "star_version": star_cli.__version__,
    }


def test_the_empty_prompt_is_read_once(tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny_pipeline("a red circle", negative="")
    assert tiny_pipeline.text_encoder is not None
    encode, read = tiny_pipeline.text_encoder.encode, []
    monkeypatch.setattr(tiny_pipeline.text_encoder, "encode", lambda texts: read.append(texts) or encode(texts))
    after = tiny_pipeline(["a red circle", "x"])
    assert read == [["a red circle", "x"]]
    assert same_tokens(before[0], after[0])
    told = tiny_pipeline.tell([ImageJob("x", 0), ImageJob("x", 1, "blue")])
    assert torch.equal(told[1].rows(slice(0, 1)).pooled, encode([""]).pooled)


def test_progress_counts_scales_over_all_passes(tiny_pipeline: StarPipeline) -> None:
    told: list[tuple[int, int]] = []
    pipeline_of(tiny_pipeline, max_batch=2)("a red circle", num=3, on_scale=lambda *done: told.append(done))
    assert told == [(done, 6) for done in range(1, 7)]


def test_progress_of_images_that_are_drawn_one_by_one(tiny_pipeline: StarPipeline) -> None:
    told: list[tuple[int, int]] = []
    options = replace(tiny_pipeline.defaults, smooth=1)
    pipe = pipeline_of(tiny_pipeline, max_batch=2)
    pipe("a red circle", num=3, options=options, on_scale=lambda *done: told.append(done))
    assert told == [(done, 9) for done in range(1, 10)]


def test_saved_image_is_whole_and_repeats_from_its_recipe(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    from PIL import Image

    from star_cli.images import read_recipe

    (image,) = tiny_pipeline("a red circle", seed=7)
    path = image.save(tmp_path / "picture.png")
    assert path.read_bytes() == image.encode("png")
    recipe = read_recipe(path)
    assert recipe == image.recipe
    options = SamplingOptions(**{key: recipe[key] for key in ("guidance", "top_k", "top_p", "temperature")})
    (again,) = tiny_pipeline(
        recipe["prompt"], res=recipe["res"], seed=recipe["seed"], negative=recipe["negative"], options=options
    )
    with Image.open(path) as opened:
        assert opened.convert("RGB").tobytes() == again.to_pil().tobytes()


@pytest.mark.parametrize("name", ["picture.webp", "picture.jpg", "picture.jpeg"])
def test_suffix_decides_the_format(tiny_pipeline: StarPipeline, tmp_path: Path, name: str) -> None:
    from star_cli.images import read_recipe

    (image,) = tiny_pipeline("a red circle")
    assert read_recipe(image.save(tmp_path / name)) == image.recipe


def test_words_that_do_not_fit_are_told(tiny_pipeline: StarPipeline) -> None:
    assert tiny_pipeline.words_cut("a red circle") == ""
    assert tiny_pipeline.words_cut("a " * 14 + "red circle") == "red circle"
    assert list(tiny_pipeline.remarks("a " * 14 + "red circle")) == ["too long, the model does not read: red circle"]


def test_words_that_no_caption_had_are_told(tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(tiny_pipeline.remarks("quantum chromodynamics")) == []  # nobody counted
    monkeypatch.setattr(tiny_pipeline, "words", frozenset({"a", "red", "circle"}))
    assert list(tiny_pipeline.remarks("A red circle.")) == []
    assert list(tiny_pipeline.remarks("a quantum circle")) == ["the model may not know: quantum"]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("res", "nearest"), [(48, 64), (0, 32), (-1, 32), (33, 32), (4096, 64)])
def test_resolution_that_the_model_does_not_draw_is_refused(
    tiny_pipeline: StarPipeline, res: int, nearest: int
) -> None:
    with pytest.raises(OptionError) as caught:
        tiny_pipeline("a red circle", res=res)
    assert str(caught.value) == f"model tiny draws 32 or 64 pixels, not {res}"
    assert caught.value.hint == f"use --res {nearest}"


@pytest.mark.parametrize(
    ("prompts", "arguments", "sentence"),
    [
        ("", {}, "the prompt is empty"),
        (" \n", {}, "the prompt is empty"),
        (["a red circle", ""], {}, "the prompt is empty"),
        ([], {}, "there is no prompt"),
        ("caf\udce9", {}, "holds bytes that are not UTF-8"),
        ("a cup", {"negative": "caf\udce9"}, "holds bytes that are not UTF-8"),
        ("a cup", {"num": 0}, "--num must be a whole number of at least 1, not 0"),
        ("a cup", {"seed": -1}, "--seed must be a whole number of at least 0, not -1"),
        ("a cup", {"seed": LARGEST_SEED, "num": 2}, f"--seed must be at most {LARGEST_SEED - 1}, not {LARGEST_SEED}"),
    ],
)
def test_request_that_cannot_be_meant_is_refused(
    tiny_pipeline: StarPipeline, prompts: str | list[str], arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(OptionError, match=sentence):
        tiny_pipeline(prompts, **arguments)


@pytest.mark.parametrize("prompt", ["🔴" * 3, "赤い円", "a\x07red\x1b[31mcircle", "x" * 20_000, "a red circle " * 1500])
def test_unusual_prompt_is_drawn(tiny_pipeline: StarPipeline, prompt: str) -> None:
    assert tiny_pipeline(prompt)[0].recipe["prompt"] == prompt


def test_largest_seed_is_drawn(tiny_pipeline: StarPipeline) -> None:
    assert tiny_pipeline("a red circle", seed=LARGEST_SEED)[0].recipe["seed"] == LARGEST_SEED


# -- where it is drawn ------------------------------------------------------------------------------------------------


def test_default_resolution_is_256_or_the_smallest(tiny_pipeline: StarPipeline) -> None:
    assert tiny_pipeline.default_resolution == 32
    schedules = {res: ScaleSchedule((res // 8,)) for res in (512, 256, 128)}
    larger = pipeline_of(tiny_pipeline, schedules=schedules)
    assert larger.default_resolution == 256
    assert larger.resolutions == (128, 256, 512)


def test_device_is_chosen_with_a_reason() -> None:
    device, reason = choose_device("auto")
    assert device.type in {"cpu", "cuda", "mps"}
    assert reason
    assert choose_device("cpu")[0] == torch.device("cpu")


def test_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match="torch sees no such device here"):
        choose_device("cuda")
    with pytest.raises(OptionError, match="must be auto, cuda, mps, cpu, not abacus"):
        choose_device("abacus")


@pytest.mark.parametrize(("capability", "dtype"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_dtype_is_float32_on_the_cpu_and_half_precision_on_a_gpu_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert choose_dtype("auto", torch.device("cpu"))[0] == torch.float32
    assert choose_dtype("auto", torch.device("cuda"))[0] == dtype
    assert choose_dtype("float16", torch.device("cpu"))[0] == torch.float16
    with pytest.raises(OptionError, match="must be auto, float32, bfloat16, float16, not float64"):
        choose_dtype("float64", torch.device("cpu"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_draws_on_the_cpu(tiny_model_folder: Path, dtype: str) -> None:
    (image,) = StarPipeline.from_pretrained(tiny_model_folder, device="cpu", dtype=dtype)("a red circle")
    assert image.pixels.float().std() > 1
    assert image.recipe["dtype"] == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_draws_the_tokens_of_the_cpu_in_float32(tiny_model_folder: Path, tiny_pipeline: StarPipeline) -> None:
    on_gpu = StarPipeline.from_pretrained(tiny_model_folder, device="cuda", dtype="float32")
    assert same_tokens(on_gpu("a red circle")[0], tiny_pipeline("a red circle")[0])


# -- what is public ---------------------------------------------------------------------------------------------------


def test_public_names_can_be_imported_from_the_package() -> None:
    assert set(star_cli.__all__) == {"GeneratedImage", "SamplingOptions", "StarError", "StarPipeline", "__version__"}
    for name in star_cli.__all__:
        assert getattr(star_cli, name)
    assert star_cli.StarPipeline is StarPipeline
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        _ = star_cli.Pipeline


def test_package_is_imported_without_torch() -> None:
    code = "import sys, star_cli; star_cli.SamplingOptions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
