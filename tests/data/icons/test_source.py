import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star_cli.data.icons.backgrounds import background
from star_cli.data.icons.catalogue import Catalogue
from star_cli.data.icons.compose import compose, compose_tensor
from star_cli.data.icons.export import contact_sheet, write_scenes, write_sheet
from star_cli.data.icons.layout import IconScene, Item
from star_cli.data.icons.scenes import HELD_OUT_SEED, is_held_out
from star_cli.data.icons.source import IconScenes
from star_cli.errors import OptionError, OutputPathError

pytest.importorskip("resvg_py")


def test_an_icon_is_drawn_where_the_scene_says(catalogue: Catalogue) -> None:
    shown = IconScene("white", 0, (Item("apple", 0.25, 0.75, 0.36, "small"),))
    picture = compose(catalogue, shown, 64)
    assert picture.getpixel((16, 48)) == pytest.approx((224, 32, 32), abs=2)
    assert picture.getpixel((48, 16)) == (255, 255, 255)


def test_what_is_in_front_covers_what_is_behind(catalogue: Catalogue) -> None:
    items = (Item("house", 0.5, 0.5, 0.68), Item("apple", 0.5, 0.5, 0.3))
    picture = compose(catalogue, IconScene("white", 0, items, "in front"), 64)
    assert picture.getpixel((32, 32)) == pytest.approx((224, 32, 32), abs=2)


def test_a_thing_on_the_ground_casts_a_shadow_and_one_in_the_air_does_not(catalogue: Catalogue) -> None:
    bare = np.asarray(background("grass", 0, 64), dtype=int)
    for key, is_shadowed in (("house", True), ("rocket", False)):
        picture = compose(catalogue, IconScene("grass", 0, (Item(key, 0.5, 0.5, 0.6),)), 64)
        below = round(64 * (0.5 + (catalogue.by_key[key].look.bottom - 0.5) * 0.6)) + 1
        change = (np.asarray(picture, dtype=int) - bare)[below, 26:38].sum(axis=-1).mean()
        assert (change < -10) == is_shadowed, change


def test_a_large_picture_reduced_is_the_small_picture(catalogue: Catalogue) -> None:
    source = IconScenes(catalogue, 6)
    for index in range(6):
        large = compose(catalogue, source.scene(index), 256).reduce(2)
        small = compose(catalogue, source.scene(index), 128)
        assert abs(np.asarray(large, dtype=float) - np.asarray(small, dtype=float)).mean() < 4


def test_pixels_are_the_picture_and_follow_from_the_seed(catalogue: Catalogue) -> None:
    source = IconScenes(catalogue, 10, first_seed=5)
    pixels = source.pixels(2, 48, "centre", random.Random(0))
    assert pixels.shape == (3, 48, 48)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() < pixels.max() <= 1
    again = IconScenes(catalogue, 10, first_seed=7).pixels(0, 48, "random", random.Random(1))
    assert torch.equal(pixels, again)
    assert torch.equal(compose_tensor(catalogue, source.scene(2), 48), pixels)


def test_captions_are_written_anew_and_one_stays(catalogue: Catalogue) -> None:
    source = IconScenes(catalogue, 10)
    assert source.captions(3) == source.captions(3)
    rng = random.Random(0)
    assert len({source.caption(3, rng) for _ in range(30)}) > 10
    assert source.name(3) == "icons seed 3"
    assert len(source) == 10


def test_a_worker_s_copy_gives_the_same_pictures(catalogue: Catalogue) -> None:
    source = IconScenes(catalogue, 10, mix="composed")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    assert torch.equal(copy.pixels(1, 32, "centre", random.Random(0)), source.pixels(1, 32, "centre", random.Random(0)))
    assert copy.labels(1) == source.labels(1)


def test_the_fingerprint_tells_other_sets_apart(catalogue: Catalogue) -> None:
    sources = [
        IconScenes(catalogue, 10),
        IconScenes(catalogue, 11),
        IconScenes(catalogue, 10, 1),
        IconScenes(catalogue, 10, mix="simple"),
        IconScenes(Catalogue(catalogue.objects[:4], catalogue.renders), 10),
    ]
    assert len({source.fingerprint for source in sources}) == 5


def test_prepared_renders_change_no_pixel(catalogue: Catalogue) -> None:
    source = IconScenes(catalogue, 4)
    before = [source.pixels(index, 64, "centre", random.Random(0)) for index in range(4)]
    source.prepare(64)
    copy = pickle.loads(pickle.dumps(source))
    for index in range(4):
        assert torch.equal(copy.pixels(index, 64, "centre", random.Random(0)), before[index])


def test_an_unknown_mix_is_named(catalogue: Catalogue) -> None:
    with pytest.raises(OptionError, match="no mix of scenes is called wild"):
        IconScenes(catalogue, 1, mix="wild")


def test_scenes_as_a_folder(catalogue: Catalogue, tmp_path: Path) -> None:
    source = IconScenes(catalogue, 3, HELD_OUT_SEED)
    steps: list[int] = []
    folder = write_scenes(source, tmp_path / "set", 32, lambda done, _: steps.append(done))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    for index, row in enumerate(rows):
        shown = source.scene(index)
        assert any(map(is_held_out, shown.pairs))
        assert row["text"] == source.captions(index)[0]
        assert (row["objects"], row["background"]) == (shown.counts, shown.background)
        with Image.open(folder / row["file_name"]) as written:
            assert written.tobytes() == compose(catalogue, shown, 32).tobytes()
    assert len(list(folder.iterdir())) == 4
    with pytest.raises(OutputPathError, match="already"):
        write_scenes(source, folder, 32)


def test_a_sheet_shows_scenes_and_captions(catalogue: Catalogue, tmp_path: Path) -> None:
    source = IconScenes(catalogue, 5)
    sheet = contact_sheet(source, 4, columns=2, side=64)
    assert sheet.width == 2 * 70
    assert sheet.crop((0, 0, 64, 64)).tobytes() == compose(catalogue, source.scene(0), 64).tobytes()
    write_sheet(source, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as written:
        assert written.format == "PNG"


def test_others_are_scenes_of_the_same_mix_that_training_never_shows(catalogue: Catalogue) -> None:
    source = IconScenes(catalogue, 10, mix="grounds")
    others = source.others(3)
    assert (len(others), others.first_seed, others.mix) == (3, HELD_OUT_SEED, source.mix)
    assert all(any(map(is_held_out, others.scene(index).pairs)) for index in range(3))
