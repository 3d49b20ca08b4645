import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star_cli.data.check import check_source
from star_cli.data.folder import ImageFolder
from star_cli.data.icons.backgrounds import background
from star_cli.data.icons.catalogue import Catalogue
from star_cli.data.icons.compose import compose, compose_tensor
from star_cli.data.icons.export import contact_sheet, write_scenes, write_sheet
from star_cli.data.icons.layout import IconScene, Item
from star_cli.data.icons.scenes import HELD_OUT_SEED, SceneMix, is_held_out
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


def test_an_interrupted_folder_names_what_it_lacks(catalogue: Catalogue, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    source = IconScenes(catalogue, 4)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(source, tmp_path, 16, interrupt)
    left = ImageFolder(tmp_path)
    assert [left.captions(index) for index in range(len(left))] == [source.captions(index) for index in range(4)]
    assert [file.name for file in check_source(left).bad] == ["00002.png", "00003.png"]


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
    assert others is not None
    assert (len(others), others.first_seed, others.mix) == (3, HELD_OUT_SEED, source.mix)
    assert all(any(map(is_held_out, others.scene(index).pairs)) for index in range(3))


def _first(catalogue: Catalogue, number: int) -> Catalogue:
    return Catalogue(catalogue.objects[:number], catalogue.renders)


@pytest.mark.parametrize(
    ("mix", "number"),
    [("full", 2), ("full", 1), ("composed", 1), (SceneMix(plain=0, pair=1), 1), (SceneMix(group=1), 2)],
)
def test_too_few_objects_for_a_mix_are_refused(catalogue: Catalogue, mix: SceneMix | str, number: int) -> None:
    with pytest.raises(OptionError, match=f"at once, and there are {number}") as caught:
        IconScenes(_first(catalogue, number), 10, mix=mix)
    assert "more objects" in str(caught.value.hint)


def test_a_mix_that_counts_needs_an_object_that_can_be(catalogue: Catalogue) -> None:
    uncounted = tuple(thing for thing in catalogue.objects if not thing.may_be_counted)
    assert uncounted
    few = Catalogue(uncounted, catalogue.renders)
    with pytest.raises(OptionError, match="can be counted"):
        IconScenes(few, 10, mix=SceneMix(plain=0, count=1))
    assert IconScenes(few, 10, mix="simple").scene(3).items


@pytest.mark.parametrize(("mix", "number"), [("full", 3), ("usual", 1)])
def test_as_few_objects_as_a_mix_needs_do(catalogue: Catalogue, mix: str, number: int) -> None:
    source = IconScenes(_first(catalogue, number), 60, mix=mix)
    assert all(source.scene(index).items for index in range(60))


def test_something_of_the_sky_needs_one_thing_that_flies_and_one_that_stands(catalogue: Catalogue) -> None:
    flying = next(thing for thing in catalogue.objects if thing.stance == "sky")
    source = IconScenes(Catalogue((catalogue.by_key["cat"], flying), catalogue.renders), 60, mix="composed")
    assert any(source.scene(index).relation == "above" for index in range(60))
    with pytest.raises(OptionError, match="of these 2 none is of the sky"):
        IconScenes(_first(catalogue, 2), 60, mix="composed")


def test_held_out_scenes_need_a_held_out_pair(catalogue: Catalogue) -> None:
    cat = Catalogue((catalogue.by_key["cat"],), catalogue.renders)  # on no ground is it held out
    with pytest.raises(OptionError, match="no scene of these 1 things is held out"):
        IconScenes(cat, 5, HELD_OUT_SEED, "simple")
    assert IconScenes(cat, 5, mix="simple").others(3) is None
    dog = Catalogue((catalogue.by_key["dog"],), catalogue.renders)
    others = IconScenes(dog, 5, mix="simple").others(3)
    assert others is not None
    assert all(any(map(is_held_out, others.scene(index).pairs)) for index in range(3))


@pytest.mark.parametrize("name", ["00000.png", "notes.txt", "metadata.jsonl", "below"])
def test_a_folder_with_anything_in_it_is_left_alone(catalogue: Catalogue, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "below" else (tmp_path / name).write_text("mine")
    with pytest.raises(OutputPathError, match="holds files already"):
        write_scenes(IconScenes(catalogue, 2), tmp_path, 16)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert name == "below" or (tmp_path / name).read_text() == "mine"


def test_an_empty_folder_is_taken_hidden_files_aside(catalogue: Catalogue, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("x")
    write_scenes(IconScenes(catalogue, 1), tmp_path, 16)
    assert len(list(tmp_path.iterdir())) == 3
