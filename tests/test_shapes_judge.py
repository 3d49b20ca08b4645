import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from benchmarks import shapes_judge
from benchmarks.shapes_detector import detect
from benchmarks.shapes_judge import judge
from benchmarks.shapes_prompts import PROMPTS_FILE, prompts, prompts_text
from star_cli.data.scenes import is_held_out
from star_cli.data.shapes import BACKGROUNDS, Scene, Thing, render, scene, variant
from star_cli.pipeline import StarPipeline


def worsen(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Edges that wobble by two pixels of 256, blur, a tint, noise: worse than a decoder's faults."""
    pixels = np.asarray(picture)
    side = len(pixels)
    unit = side / 256
    ys, xs = np.mgrid[0:side, 0:side]

    def wobble() -> np.ndarray:
        down, across, phase = *rng.normal(size=2), rng.uniform(0, 2 * np.pi)
        return np.rint(2 * unit * np.sin(2 * np.pi * (down * ys + across * xs) / (40 * unit) + phase)).astype(int)

    moved = pixels[(ys + wobble()).clip(0, side - 1), (xs + wobble()).clip(0, side - 1)]
    blurred = Image.fromarray(moved).filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2) * unit))
    noisy = np.asarray(blurred) + rng.normal(size=3) * 6 + rng.normal(size=pixels.shape) * 14
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def count_right(count: int, resolution: int, noise: np.random.Generator | None = None) -> int:
    """How many of the first scenes are read wholly right from their pictures, which `noise` makes worse."""
    right = 0
    for one in map(scene, range(count)):
        picture = render(one, resolution)
        right += judge(worsen(picture, noise) if noise else picture, one).all_ok
    return right


@pytest.mark.parametrize("resolution", [256, 512])
def test_true_pictures_are_judged_right(resolution: int) -> None:
    assert count_right(60, resolution) == 60


def test_true_pictures_with_noise_blur_and_wobble_are_judged_right() -> None:
    assert count_right(40, 256, np.random.default_rng(0)) >= 39


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [256, 512])
def test_the_judge_hardly_errs_on_hundreds_of_true_pictures(resolution: int) -> None:
    assert count_right(400, resolution) >= 0.99 * 400
    assert count_right(400, resolution, np.random.default_rng(0)) >= 0.97 * 400


def test_pictures_of_a_variant_are_never_judged_right() -> None:
    rng = random.Random(0)
    for one in map(scene, range(60)):
        other = variant(one, rng)
        verdict = judge(render(other, 256), one)
        assert not verdict.all_ok, (one, other)
        assert verdict.background_ok == (other.background == one.background)


CIRCLE_LEFT = Scene("white", (Thing("circle", "red", "medium", 0.25, 0.5), Thing("star", "blue", "medium", 0.75, 0.5)))
HEART = Scene("white", (Thing("heart", "green", "medium", 0.5, 0.5),))


def verdict_of(shown: Scene, asked: Scene) -> set[str]:
    """What is wrong."""
    return {name.removesuffix("_ok") for name, is_ok in asdict(judge(render(shown, 256), asked)).items() if not is_ok}


def changed(asked: Scene, index: int, **changes: str | float) -> Scene:
    things = list(asked.things)
    things[index] = replace(things[index], **changes)
    return replace(asked, things=tuple(things))


def test_each_fault_is_named() -> None:
    assert verdict_of(HEART, HEART) == set()
    assert verdict_of(replace(HEART, background="pink"), HEART) == {"background"}
    assert verdict_of(changed(HEART, 0, colour="blue"), HEART) == {"colour", "binding"}
    assert verdict_of(changed(HEART, 0, shape="circle"), HEART) == {"shape", "binding"}
    assert verdict_of(changed(HEART, 0, size="large"), HEART) == {"size"}
    assert verdict_of(changed(HEART, 0, x=0.25), HEART) == {"relation"}


def test_a_thing_too_many_or_too_few_is_wrong_in_all_but_the_background() -> None:
    everything = {"colour", "shape", "relation", "binding", "size"}
    assert verdict_of(CIRCLE_LEFT, HEART) == everything
    assert verdict_of(HEART, CIRCLE_LEFT) == everything
    assert verdict_of(Scene("white", ()), HEART) == everything


def test_relation_of_two_things() -> None:
    left, right = CIRCLE_LEFT.things
    swapped = Scene("white", (replace(right, x=0.25), replace(left, x=0.75)))
    below = Scene("white", (replace(left, x=0.5, y=0.25), replace(right, x=0.5, y=0.75)))
    assert verdict_of(swapped, CIRCLE_LEFT) == {"relation", "binding"}
    assert verdict_of(below, CIRCLE_LEFT) >= {"relation"}
    only_shapes = changed(changed(CIRCLE_LEFT, 0, shape="star"), 1, shape="circle")
    assert verdict_of(only_shapes, CIRCLE_LEFT) == {"binding"}


def test_noise_and_garbage_are_no_shapes() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    assert detect(noise).background is None
    half = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(half).rectangle((0, 0, 127, 255), fill=BACKGROUNDS["blue"])
    assert detect(half).background is None
    bar = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(bar).rectangle((30, 120, 220, 135), fill=BACKGROUNDS["blue"])
    assert [thing.shape for thing in detect(bar).things] == [None]
    patchwork = render(HEART, 256)
    ImageDraw.Draw(patchwork).rectangle((0, 0, 128, 256), fill="white")
    assert [thing.shape for thing in detect(patchwork).things] == [None]


def test_a_thing_of_two_colours_has_none() -> None:
    picture = render(changed(HEART, 0, shape="square"), 256)
    pixels = np.array(picture)
    right = (pixels[:, 128:] != 255).any(axis=-1)
    pixels[:, 128:][right] = BACKGROUNDS["red"]
    (found,) = detect(Image.fromarray(pixels)).things
    assert found.colour is None
    assert found.shape == "square"


def test_prompts_file_is_what_its_script_writes() -> None:
    assert PROMPTS_FILE.read_text(encoding="utf-8") == prompts_text()


def test_prompts_are_a_hundred_unique_held_out_scenes() -> None:
    pairs = prompts()
    assert [len(one.things) for _, one in pairs] == [1] * 60 + [2] * 40
    assert len({words for words, _ in pairs}) == len({one for _, one in pairs}) == 100
    assert all(is_held_out(one) for _, one in pairs)
    lines = PROMPTS_FILE.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [words for words, _ in pairs]


def test_the_judge_draws_and_writes_its_report(
    tiny_pipeline: StarPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StarPipeline, "from_pretrained", lambda *_, **__: tiny_pipeline)
    report, sheet = tmp_path / "scores.json", tmp_path / "sheet.png"
    options = [
        "--res",
        "32",
        "--limit",
        "5",
        "--num",
        "2",
        "--top-k",
        "3",
        "--json",
        str(report),
        "--sheet",
        str(sheet),
    ]
    shapes_judge.main(options)
    written = json.loads(report.read_text(encoding="utf-8"))
    assert len(written["verdicts"]) == 10
    assert written["sampling"]["top_k"] == 3
    assert set(written["scores"]) == {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    with Image.open(sheet) as drawn:
        assert drawn.size == (1280, 128)
