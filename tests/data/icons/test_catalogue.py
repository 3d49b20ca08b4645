import json
import pickle
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from star_cli.data.icons.catalogue import Catalogue, open_catalogue
from star_cli.data.icons.fetch import icons_root
from star_cli.data.icons.looks import measure
from star_cli.data.icons.render import IconRenders, master_size, render_svg
from star_cli.errors import DataError, OptionError

pytest.importorskip("resvg_py")


def test_objects_come_in_the_vocabulary_s_order_then_by_rule(catalogue: Catalogue) -> None:
    assert catalogue.keys[:3] == ("cat", "dog", "mouse")
    assert catalogue.keys[-1] == "oyster"
    assert catalogue.by_key["oyster"].category == "animals"
    assert catalogue.by_key["oyster"].names == ("oyster", "mollusc")  # a pearl is a ring's too, diving is done there
    assert "two o'clock" not in catalogue.by_key


def test_the_first_objects_are_the_same_however_many_are_asked_for(icon_folder: Path, catalogue: Catalogue) -> None:
    few = open_catalogue(icon_folder, objects=5)
    assert few.objects == catalogue.objects[:5]
    assert few.fingerprint != catalogue.fingerprint


def test_no_key_and_no_name_comes_twice(catalogue: Catalogue) -> None:
    names = [name for thing in catalogue.objects for name in thing.names]
    assert len(set(names)) == len(names)


def test_what_may_be_done_to_things(catalogue: Catalogue) -> None:
    by_key = catalogue.by_key
    assert not by_key["bread"].may_be_counted
    assert not by_key["grapes"].may_be_counted
    assert by_key["apple"].may_be_counted
    assert by_key["apple"].may_turn
    assert not by_key["hospital"].may_flip
    assert (by_key["rocket"].stance, by_key["house"].stance, by_key["sailboat"].stance) == ("sky", "ground", "water")
    assert "kitten" in by_key["tabby"].body_names


def test_a_word_finds_its_object(catalogue: Catalogue) -> None:
    found = catalogue.find("kitten")
    assert found is not None
    assert found.key == "cat"
    assert catalogue.find("quark") is None


def test_looks_are_measured(catalogue: Catalogue) -> None:
    looks = {key: thing.look for key, thing in catalogue.by_key.items()}
    assert looks["apple"].colour == looks["apple"].said_colour == "red"
    assert looks["green apple"].said_colour == "green"
    assert looks["ghost"].is_pale
    assert not looks["apple"].is_pale
    bread = looks["bread"]
    assert (bread.left, bread.top, bread.right, bread.bottom) == pytest.approx((4 / 32, 16 / 32, 28 / 32, 28 / 32))


def test_a_colour_is_said_only_where_there_is_no_doubt() -> None:
    picture = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    ImageDraw.Draw(picture).rectangle((0, 0, 63, 31), fill=(0, 160, 60, 255))
    assert measure(picture).said_colour == ""
    assert measure(Image.new("RGBA", (64, 64))).colour == ""


def test_too_few_or_no_objects(icon_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="-1 objects"):
        open_catalogue(icon_folder, objects=-1)
    (tmp_path / "icons.json").write_text('{"icons": {"nothing-known": {"body": "<g/>"}}}')
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(DataError, match="none of the icons"):
        open_catalogue(tmp_path)


def test_renders_are_kept_on_disk_and_travel_without_pixels(catalogue: Catalogue) -> None:
    renders = catalogue.renders
    fresh = renders.image("red-apple", 100, master=128).tobytes()
    steps: list[tuple[int, int]] = []
    renders.prepare(["red-apple", "house"], 100, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    (kept,) = icons_root().glob("renders-*-128.zip")
    renders.prepare(["red-apple"], 100)  # there already
    renders.prepare(["ghost"], 128, lambda done, total: steps.append((done, total)))
    assert steps[2:] == [(1, 1)]
    again = pickle.loads(pickle.dumps(renders))
    assert isinstance(again, IconRenders)
    assert again.image("red-apple", 100, master=128).tobytes() == fresh
    assert len(pickle.dumps(renders)) < 1000
    assert kept.stat().st_size > 0


def test_flipping_and_turning(catalogue: Catalogue) -> None:
    renders = catalogue.renders
    boat, mirrored = (renders.image("sailboat", 64, is_flipped) for is_flipped in (False, True))
    assert mirrored.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() == boat.tobytes()
    assert renders.image("key", 64, angle=90).getbbox() != renders.image("key", 64).getbbox()


@pytest.mark.parametrize(("size", "kept"), [(1, 64), (64, 64), (65, 128), (512, 512), (4000, 1024)])
def test_master_sizes(size: int, kept: int) -> None:
    assert master_size(size) == kept


def test_a_broken_drawing_is_an_error() -> None:
    with pytest.raises(DataError, match="cannot be drawn"):
        render_svg("<svg", 16)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"house": 1}', '{"house": {"left": 0}}', "\0"])
def test_damaged_measurements_are_made_again(content: str, icon_folder: Path) -> None:
    pytest.importorskip("resvg_py")
    before = open_catalogue(icon_folder, objects=4).objects
    (kept,) = icons_root().glob("looks-*.json")
    kept.write_text(content)
    assert open_catalogue(icon_folder, objects=4).objects == before
    assert len(json.loads(kept.read_text())) == 4
