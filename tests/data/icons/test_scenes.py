import random
import re
from collections import Counter

import numpy as np
import pytest

from star_cli.data.icons.backgrounds import BACKGROUNDS, GROUNDED, LANDSCAPES, PLAIN, VARIANTS, background
from star_cli.data.icons.captions import caption, known_words
from star_cli.data.icons.catalogue import Catalogue
from star_cli.data.icons.labels import label_choices, labels
from star_cli.data.icons.layout import DEFAULT_GROUNDS, PLACES, SIDES, IconScene, Item
from star_cli.data.icons.scenes import HELD_OUT_SEED, MIXES, SceneMix, default_ground, is_held_out, scene
from star_cli.data.icons.variants import variant
from star_cli.data.icons.words import plural
from star_cli.errors import OptionError
from star_cli.vocabulary import split_words

pytest.importorskip("resvg_py")

FULL = MIXES["full"]


def some_scenes(catalogue: Catalogue, mix: SceneMix = FULL, count: int = 300, first: int = 0) -> list[IconScene]:
    return [scene(catalogue, mix, first + seed) for seed in range(count)]


def test_a_seed_decides_the_scene(catalogue: Catalogue) -> None:
    assert some_scenes(catalogue, count=20) == some_scenes(catalogue, count=20)
    assert len(set(some_scenes(catalogue, count=60))) > 50


def test_training_shows_no_held_out_pair_and_the_others_do(catalogue: Catalogue) -> None:
    for shown in some_scenes(catalogue):
        assert not any(map(is_held_out, shown.pairs))
    for shown in some_scenes(catalogue, first=HELD_OUT_SEED):
        assert any(map(is_held_out, shown.pairs))


def test_a_tenth_of_all_pairs_is_held_out_in_either_order_but_never_a_whole_thing(catalogue: Catalogue) -> None:
    pairs = [(str(a), str(b)) for a in range(100) for b in range(a)]
    assert np.mean([is_held_out(pair) for pair in pairs]) == pytest.approx(0.1, abs=0.01)
    assert all(is_held_out(pair) == is_held_out(pair[::-1]) for pair in pairs)
    shown = Counter(key for one in some_scenes(catalogue, count=1500) for key in one.keys)
    assert shown.keys() == set(catalogue.keys)
    assert min(shown.values()) > 20


def test_nothing_is_held_out_on_the_unsaid_grounds() -> None:
    for ground in DEFAULT_GROUNDS:
        assert not list(IconScene(ground, 0, scene_items("cat")).pairs)
    assert list(IconScene("wood", 0, scene_items("cat")).pairs) == [("cat", "on wood")]


def scene_items(*keys: str) -> tuple[Item, ...]:
    return tuple(Item(key, 0.5, 0.5, SIDES["medium"]) for key in keys)


def test_the_simple_mix_has_one_thing_in_one_pose_on_plain_ground(catalogue: Catalogue) -> None:
    for shown in some_scenes(catalogue, MIXES["simple"]):
        (item,) = shown.items
        assert (item.x, item.y, item.side, item.is_flipped, item.angle) == (0.5, 0.5, SIDES["medium"], False, 0)
        assert shown.background in PLAIN


def test_every_kind_of_scene_comes_as_often_as_the_mix_says(catalogue: Catalogue) -> None:
    shown = some_scenes(catalogue, SceneMix(plain=0, count=1, pair=1), count=1000)
    relations = Counter(one.relation for one in shown)
    assert relations["row"] == pytest.approx(500, abs=60)
    assert relations["beside"] > relations["above"] > relations["in front"] > 50
    counts = Counter(len(one.items) for one in shown if one.relation == "row")
    assert counts.keys() == {2, 3, 4}
    assert {one.background for one in some_scenes(catalogue, count=2500)} == set(BACKGROUNDS)
    assert {one.place for one in some_scenes(catalogue, SceneMix(plain=0, posed=1), count=400)} == set(PLACES)


def test_things_stay_in_the_picture(catalogue: Catalogue) -> None:
    for shown in some_scenes(catalogue, count=600):
        for item in shown.items:
            assert 0.4 * item.side < item.x < 1 - 0.4 * item.side
            look = catalogue.by_key[item.key].look
            assert item.y + (look.bottom - 0.5) * item.side <= 1.0


def test_what_stands_on_the_ground_stands_below_the_horizon(catalogue: Catalogue) -> None:
    for shown in some_scenes(catalogue, MIXES["grounds"], count=600):
        (item,) = shown.items
        thing = catalogue.by_key[item.key]
        if shown.background in GROUNDED and thing.stance != "sky":
            assert item.y + (thing.look.bottom - 0.5) * item.side == pytest.approx(0.9, abs=1e-3)


def test_nothing_has_the_colour_of_a_plain_ground(catalogue: Catalogue) -> None:
    for shown in some_scenes(catalogue, count=600):
        things = [catalogue.by_key[key] for key in shown.keys]
        if shown.background != default_ground(things):
            assert shown.background not in {thing.look.colour for thing in things}


def test_the_same_things_at_two_places_are_whole_tokens_apart(catalogue: Catalogue) -> None:
    """Of the smallest token map that tells them apart at 256 px, 16 a side."""
    for shown in some_scenes(catalogue, SceneMix(plain=0, count=1, pair=1, group=1), count=600):
        first, *others = shown.items
        assert {item.side for item in shown.items} <= {0.31, SIDES["small"], SIDES["medium"]}
        for item in others:
            across, down = 16 * (item.x - first.x), 16 * (item.y - first.y)
            assert across == pytest.approx(round(across))
            if shown.background not in GROUNDED:
                assert down == pytest.approx(round(down))


def test_three_of_a_kind_are_said_to_stand_in_a_row_only_where_they_do(catalogue: Catalogue) -> None:
    rng, said = random.Random(4), Counter[bool]()
    for shown in some_scenes(catalogue, SceneMix(plain=0, count=1), count=600):
        is_row = len({item.y for item in shown.items}) == 1
        assert is_row or len(shown.items) > 2
        says_row = "in a row" in caption(catalogue, shown, rng)
        assert is_row or not says_row
        said[says_row] += 1
    assert said[True] > 50


def test_what_is_not_counted_comes_once(catalogue: Catalogue) -> None:
    for shown in some_scenes(catalogue, count=600):
        for key, count in shown.counts.items():
            assert count == 1 or catalogue.by_key[key].may_be_counted


def test_a_variant_differs_in_one_respect_and_keeps_the_split(catalogue: Catalogue) -> None:
    rng = random.Random(0)
    for shown in some_scenes(catalogue, count=200):
        other = variant(catalogue, shown, rng)
        assert other != shown
        assert not any(map(is_held_out, other.pairs))
        assert labels(catalogue, other) != labels(catalogue, shown) or len(shown.items) > 1


def test_labels_tell_scenes_apart_and_fit_their_choices(catalogue: Catalogue) -> None:
    choices = label_choices(catalogue)
    for shown in some_scenes(catalogue, count=200):
        told = labels(catalogue, shown)
        assert len(told) == len(choices)
        assert all(0 <= answer < number for answer, number in zip(told, choices, strict=True))
        assert told[0] == BACKGROUNDS.index(shown.background)
        named = {catalogue.keys[told[slot] - 1]: told[slot + 1] for slot in (3, 6, 9) if told[slot]}
        assert named == shown.counts


def test_several_things_are_common_ones_where_the_mix_says_so(catalogue: Catalogue) -> None:
    common = {thing.key for thing in catalogue.common}
    assert {"cat", "apple"} < common < set(catalogue.keys)
    mix = SceneMix(plain=1, count=1, pair=1, group=1, common=True)
    single = set()
    for shown in some_scenes(catalogue, mix, count=600):
        if len(shown.items) > 1:
            assert set(shown.keys) <= common
        else:
            single |= set(shown.keys)
    assert single - common


def test_what_flies_is_over_what_stands(catalogue: Catalogue) -> None:
    for shown in some_scenes(catalogue, SceneMix(plain=0, over=1), count=200):
        above, below = shown.items
        assert above.y < below.y
        assert catalogue.by_key[above.key].stance == "sky"
        assert catalogue.by_key[below.key].stance != "sky"
        assert catalogue.by_key[below.key].is_common


@pytest.mark.parametrize("fields", [{"plain": 0.0}, {"plain": -1.0}, {"jitter": 0.5}])
def test_a_mix_must_mean_something(fields: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="mix"):
        SceneMix(**fields)


# -- captions: an independent reader, which shares the names of things with the writer, and none of its forms ----------

_GROUND_SIGNS = {
    "sky": r"\bsky\b|cloud",
    "night": r"\bnight\b|stars\b|starry|in space",
    "sunset": r"sunset|dusk|evening|sundown",
    "grass": r"grass|meadow|green field|lawn",
    "snow": r"\bsnow\b|snowy (?!mountain)|winter",
    "sea": r"\bsea\b|ocean|water\b",
    "sand": r"\bsand|desert",
    "wood": r"wood|planks",
}


def names(catalogue: Catalogue, key: str) -> list[str]:
    """All that may stand for a thing, the longest first."""
    thing = catalogue.by_key[key]
    said = {*thing.names, *thing.body_names}
    return sorted({form for name in said for form in (name, plural(name))}, key=len, reverse=True)


def mentions(catalogue: Catalogue, key: str, words: str) -> bool:
    return any(re.search(rf"\b{re.escape(name.lower())}\b", words) for name in names(catalogue, key))


def test_a_caption_names_every_thing_and_no_other(catalogue: Catalogue) -> None:
    rng = random.Random(1)
    for shown in some_scenes(catalogue, count=600):
        words = caption(catalogue, shown, rng).lower()
        rest = words
        for key in shown.keys:
            assert mentions(catalogue, key, words), (words, key)
            for name in names(catalogue, key):
                rest = re.sub(rf"\b{re.escape(name.lower())}\b", "", rest)
        rest = rest.replace("desert", "").replace("drawing", "")
        for key in catalogue.keys:
            assert not mentions(catalogue, key, rest), (words, key)


def test_captions_use_known_words_alone(catalogue: Catalogue) -> None:
    known, rng = known_words(catalogue), random.Random(7)
    assert {"kitten", "kittens", "grass", "three", "3d", "jack-o'-lantern"} - known == {"jack-o'-lantern"}
    for shown in some_scenes(catalogue, count=800):
        words = caption(catalogue, shown, rng)
        assert split_words([words]) <= known, words


def test_a_caption_tells_how_many(catalogue: Catalogue) -> None:
    rng = random.Random(2)
    said = {2: r"\b(two|2|a pair of)\b", 3: r"\b(three|3)\b", 4: r"\b(four|4)\b"}
    for shown in some_scenes(catalogue, SceneMix(plain=0, count=1, group=0.5), count=300):
        words = re.sub(r"\b3d\b", "", caption(catalogue, shown, rng).lower())
        for number, form in said.items():
            assert bool(re.search(form, words)) == (number in shown.counts.values()), words


def test_a_caption_tells_the_ground_and_no_other(catalogue: Catalogue) -> None:
    rng = random.Random(3)
    for shown in some_scenes(catalogue, count=800):
        words = caption(catalogue, shown, rng).lower()
        things = [catalogue.by_key[key] for key in shown.keys]
        if shown.background in LANDSCAPES:
            assert re.search(_GROUND_SIGNS[shown.background], words), words
            plain = re.sub(r"snowy mountain|snow-capped mountain|mountains? with snow", "", words)
            others = {name for name, sign in _GROUND_SIGNS.items() if re.search(sign, plain)} - {shown.background}
            assert not others - {"sky"}, words  # "night sky", "sunset sky" have a sky too
        elif shown.background != default_ground(things):
            colours = shown.background.removesuffix(" gradient").replace("light blue", "blue")
            assert re.search(colours.replace("grey", "gr[ea]y"), words), words


def test_places_and_sizes_are_told(catalogue: Catalogue) -> None:
    rng = random.Random(4)
    for shown in some_scenes(catalogue, SceneMix(plain=0, posed=1), count=400):
        (item,) = shown.items
        words = caption(catalogue, shown, rng).lower()
        assert bool(re.search(r"\b(small|little|tiny)\b", words)) == (item.size == "small"), words
        assert bool(re.search(r"\b(large|big|huge)\b", words)) == (item.size == "large"), words
        upper = words.replace("upper", "top").replace("lower", "bottom")
        for part in shown.place.split():
            assert part in upper.replace("center", "centre") or part == "centre", words
        if "left" not in shown.place:
            assert " left" not in words.replace("tilted to the left", ""), words


def test_who_stands_where_is_told(catalogue: Catalogue) -> None:
    """Of two things, the caption's order words fit the picture."""
    rng = random.Random(5)
    for shown in some_scenes(catalogue, SceneMix(plain=0, pair=1), count=400):
        words = caption(catalogue, shown, rng).lower()
        for number, key in enumerate(shown.keys):
            for name in names(catalogue, key):
                words = re.sub(rf"\b{re.escape(name.lower())}\b", f"<{number}>", words)
        is_told = re.search(
            r"<(\d)> (?:is )?(to the left of|left of|on the left of|to the right of|right of|on the right of|above|over"
            r"|on top of|below|under|beneath|in front of|behind|before) (?:\w+ )*?<(\d)>",
            words,
        )
        if is_told is None or is_told[1] == is_told[3]:
            continue
        first_is_first = is_told[1] == "0"
        word = is_told[2]
        expected = {"left": True, "above": True, "over": True, "on top of": True, "behind": True}
        says_first = any(sign in word for sign in expected)
        assert first_is_first == says_first, words


def test_captions_of_one_scene_vary_from_short_to_long(catalogue: Catalogue) -> None:
    rng = random.Random(6)
    shown = next(one for one in some_scenes(catalogue, MIXES["grounds"]) if one.background == "grass")
    lengths = [len(caption(catalogue, shown, rng).split()) for _ in range(200)]
    assert min(lengths) <= 3
    assert max(lengths) >= 8
    plain = IconScene("white", 0, scene_items("cat"))
    said = {caption(catalogue, plain, rng) for _ in range(400)}
    assert {"cat", "a cat", "a kitten"} <= said


# -- backgrounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_is_the_same_at_every_resolution(name: str) -> None:
    large, small = background(name, 3, 128), background(name, 3, 64)
    assert small.size == (64, 64)
    difference = np.asarray(large.reduce(2), dtype=float) - np.asarray(small, dtype=float)
    assert abs(difference).mean() < (6 if name == "wood" else 2.5)


@pytest.mark.parametrize("name", LANDSCAPES)
def test_landscapes_have_variants(name: str) -> None:
    assert len({background(name, variant, 32).tobytes() for variant in range(VARIANTS)}) == VARIANTS


def test_backgrounds_differ() -> None:
    assert len({background(name, 0, 32).tobytes() for name in BACKGROUNDS}) == len(BACKGROUNDS)
