import random
import re
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from star_cli.data.captions import SHAPE_WORDS, SIZE_WORDS
from star_cli.data.scenes import PLACES, is_held_out
from star_cli.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_SEED,
    SHAPES,
    Scene,
    Thing,
    caption,
    render,
    render_tensor,
    sample,
    scene,
    variant,
)

seeds = st.integers(0, HELD_OUT_SEED - 1) | st.integers(HELD_OUT_SEED, 2 * HELD_OUT_SEED)
scenes = seeds.map(scene)
numbers = st.integers(0, 2**32).map(random.Random)


@given(seeds)
def test_a_seed_decides_scene_caption_and_pixels(seed: int) -> None:
    shown, words = sample(seed)
    assert (shown, words) == sample(seed)
    assert shown == scene(seed)
    assert render(shown, 64).tobytes() == render(scene(seed), 64).tobytes()


def is_well_spaced(shown: Scene) -> bool:
    """Whether its things stay inside the picture, and apart."""
    is_inside = all(thing.radius < at < 1 - thing.radius for thing in shown.things for at in (thing.x, thing.y))
    pairs = combinations(shown.things, 2)
    return is_inside and all(max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius for a, b in pairs)


def is_well_coloured(shown: Scene) -> bool:
    """Whether its things stand out from the background and from each other."""
    looks = {(thing.shape, thing.colour) for thing in shown.things}
    colours = {thing.colour for thing in shown.things}
    return shown.background in BACKGROUNDS.keys() - colours and len(looks) == len(shown.things)


@given(scenes)
def test_things_stay_inside_and_never_overlap(shown: Scene) -> None:
    assert is_well_spaced(shown)


@given(scenes)
def test_no_thing_has_the_colour_of_the_background_and_no_two_look_the_same(shown: Scene) -> None:
    assert is_well_coloured(shown)


@given(scenes, numbers)
def test_a_caption_names_every_colour_and_shape(shown: Scene, rng: random.Random) -> None:
    words = re.findall(r"[a-z]+", caption(shown, rng).lower())
    for thing in shown.things:
        assert any((thing.colour, shape) in pairwise(words) for shape in SHAPE_WORDS[thing.shape])


@settings(max_examples=500)
@given(scenes, numbers)
def test_a_caption_says_its_scene_and_no_other(shown: Scene, rng: random.Random) -> None:
    words = caption(shown, rng)
    assert read_caption(words) == shown, words


@given(scenes, numbers)
def test_a_variant_is_a_different_scene_and_keeps_the_split(shown: Scene, rng: random.Random) -> None:
    other = variant(shown, rng)
    assert other != shown
    assert is_held_out(shown) or not is_held_out(other)
    assert len(other.things) == len(shown.things)
    assert is_well_spaced(other)
    assert is_well_coloured(other)
    assert read_caption(caption(other, rng)) == other


@given(st.integers(0, HELD_OUT_SEED - 1), st.integers(HELD_OUT_SEED, 2 * HELD_OUT_SEED))
def test_training_never_sees_a_held_out_scene(training: int, held_out: int) -> None:
    assert not is_held_out(scene(training))
    assert is_held_out(scene(held_out))


def test_shares_of_one_two_and_three_things() -> None:
    counts = [len(scene(seed).things) for seed in range(4000)]
    assert [round(counts.count(n) / 4000, 1) for n in (1, 2, 3)] == [0.5, 0.4, 0.1]


def test_every_shape_colour_background_and_place_appears() -> None:
    shown = [scene(seed) for seed in range(2000)]
    assert {thing.shape for one in shown for thing in one.things} == set(SHAPES)
    assert {thing.colour for one in shown for thing in one.things} == set(COLOURS)
    assert {one.background for one in shown} == set(BACKGROUNDS)
    assert {one.place for one in shown if len(one.things) == 1} == set(PLACES)


def test_captions_of_one_scene_vary() -> None:
    rng = random.Random(0)
    assert len({caption(scene(1), rng) for _ in range(50)}) > 20


@pytest.mark.parametrize("resolution", [32, 100, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_is_drawn_in_its_colour_around_its_centre(shape: str, resolution: int) -> None:
    picture = render(Scene("yellow", (Thing(shape, "blue", "large", 0.25, 0.75),)), resolution)
    assert picture.size == (resolution, resolution)
    assert picture.getpixel((resolution // 4, resolution * 3 // 4)) == COLOURS["blue"]
    assert picture.getpixel((resolution * 3 // 4, resolution // 4)) == COLOURS["yellow"]
    drawn = np.nonzero((np.asarray(picture) != COLOURS["yellow"]).any(axis=-1))
    for lines, centre in zip(drawn, (0.75, 0.25), strict=True):
        middle = (lines.min() + lines.max() + 1) / 2 / resolution
        assert abs(middle - centre) < 0.04


def test_a_large_render_reduced_is_the_small_render() -> None:
    large = render(scene(5), 512).resize((128, 128), Image.Resampling.BOX)
    difference = np.asarray(large, dtype=float) - np.asarray(render(scene(5), 128), dtype=float)
    assert abs(difference).mean() < 1


def test_a_render_as_a_tensor_is_the_same_picture() -> None:
    pixels = render_tensor(scene(3), 64)
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    back = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert back.tobytes() == render(scene(3), 64).tobytes()


# An independent reader of captions: it shares the words of shapes and sizes with the writer, and none of its forms.

_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words if word}
_SHAPES = {word: shape for shape, words in SHAPE_WORDS.items() for word in words}
_GROUNDS = {name: name for name in BACKGROUNDS} | {"gray": "grey"}
_NOUN = re.compile(rf"\b(?:an? )?(?:({'|'.join(_SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(_SHAPES)})\b")
_GROUND = re.compile(rf"\b({'|'.join(_GROUNDS)}) (?:background|backdrop)|\bon ({'|'.join(_GROUNDS)})$")
_IN_COLUMN = re.compile(r"above|over|on top of|top to bottom|at the top|below|under|beneath|column")
_FIRST_IS_LAST = re.compile(
    r"0,? (?:to the |on the )?(?:right|below|under|beneath|underneath|at the bottom)\b|to its left|above it"
)


def read_caption(words: str) -> Scene:
    """The scene that an attentive reader would paint."""
    text = words.lower().rstrip(".")
    looks = [(_SHAPES[shape], colour, _SIZES.get(size, "medium")) for size, colour, shape in _NOUN.findall(text)]
    numbers = iter("012")
    text = _NOUN.sub(lambda _: next(numbers), text)  # "0 to the left of 1 on a yellow background"
    ground = _GROUND.search(text)
    unsaid = "grey" if any(colour == "white" for _, colour, _ in looks) else "white"
    text = _GROUND.sub("", text)
    spots = [PLACES[_read_place(text)]] if len(looks) == 1 else _read_line(text, len(looks))
    things = [Thing(*look, *spot) for look, spot in zip(looks, spots, strict=True)]
    background = _GROUNDS[ground[1] or ground[2]] if ground else unsaid
    return Scene(background, tuple(sorted(things, key=lambda thing: (thing.y, thing.x))))


def _read_place(text: str) -> str:
    text = text.replace("upper", "top").replace("lower", "bottom")
    return " ".join(re.findall(r"\b(?:top|bottom)\b", text) + re.findall(r"\b(?:left|right)\b", text)) or "centre"


def _read_line(text: str, count: int) -> list[tuple[float, float]]:
    along = [0.25, 0.75] if count == 2 else [0.17, 0.5, 0.83]
    if _FIRST_IS_LAST.search(text):
        along.reverse()
    return [(0.5, at) if _IN_COLUMN.search(text) else (at, 0.5) for at in along]
