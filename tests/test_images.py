"""Pictures as files: the recipe comes back whatever it says, and files are whole or not there."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from star_cli.errors import OutputError, OutputPathError, RecipeError
from star_cli.images import check_folder, encode_image, format_of, read_recipe, to_uint8, write_whole

FORMATS = ["png", "webp", "jpeg"]
# every character there is: controls, emoji, halves of characters
TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
VALUES = st.one_of(TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none(), st.booleans())
RECIPES = st.dictionaries(TEXT, VALUES, max_size=8)


def noise(side: int = 8) -> Tensor:
    return torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=30)
@given(recipe=RECIPES)
def test_any_recipe_comes_back_and_bytes_are_stable(scratch: Path, format: str, recipe: dict[str, Any]) -> None:  # noqa: A002
    data = encode_image(noise(), recipe, format)
    assert encode_image(noise(), recipe, format) == data
    path = scratch / f"any.{format}"
    path.write_bytes(data)
    assert read_recipe(path) == recipe


@pytest.mark.parametrize("format", FORMATS)
def test_long_recipe_comes_back(scratch: Path, format: str) -> None:  # noqa: A002
    recipe = {"prompt": "word " * 4000}
    path = scratch / f"long.{format}"
    path.write_bytes(encode_image(noise(), recipe, format))
    assert read_recipe(path) == recipe


def test_recipe_too_long_for_a_jpeg_is_refused() -> None:
    with pytest.raises(OutputPathError, match="a JPEG carries a recipe of at most 65,000 bytes, this one has 240,"):
        encode_image(noise(), {"prompt": "\U0001f534" * 20_000}, "jpeg")


@pytest.mark.parametrize("format", ["png", "webp"])
def test_png_and_webp_keep_every_pixel(scratch: Path, format: str) -> None:  # noqa: A002
    path = scratch / f"pixels.{format}"
    path.write_bytes(encode_image(noise(64), {}, format))
    with Image.open(path) as image:
        assert image.convert("RGB").tobytes() == bytes(noise(64).flatten().tolist())


def test_recipe_behind_the_pixels_is_found(scratch: Path) -> None:
    data = encode_image(noise(), {"prompt": "x"}, "png")
    start = data.index(b"tEXt") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    last = data.index(b"IEND") - 4
    (scratch / "moved.png").write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert read_recipe(scratch / "moved.png") == {"prompt": "x"}


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"seed": NaN}', '{"seed": 1e999}', "[" * 100_000, '{"seed": ' + "9" * 5000 + "}"]
)
def test_damaged_recipe_is_refused(scratch: Path, text: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("star", text)
    Image.new("RGB", (8, 8)).save(scratch / "damaged.png", pnginfo=info)
    with pytest.raises(RecipeError, match="its recipe is damaged"):
        read_recipe(scratch / "damaged.png")


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=60)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), length=st.integers(0, 10_000))
def test_damaged_file_gives_a_recipe_or_our_error(
    scratch: Path,
    format: str,  # noqa: A002
    place: int,
    value: int,
    length: int,
) -> None:
    data = bytearray(encode_image(noise(), {"prompt": "a red circle", "seed": 1}, format))
    data[place % len(data)] = value
    path = scratch / f"flipped.{format}"
    path.write_bytes(data[: length % len(data)] if length % 2 else data)
    with suppress(RecipeError):  # any other error fails the test
        assert isinstance(read_recipe(path), dict)


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_pixels_are_rounded_and_clamped() -> None:
    levels = torch.arange(256)
    exact = levels / 127.5 - 1
    for shift in (-0.49, 0.0, 0.49):
        row = (exact + shift / 127.5).expand(3, 1, 256)
        assert torch.equal(to_uint8(row)[0, :, 0].long(), levels)
    assert to_uint8(torch.tensor([-7.0, 0.0, 7.0]).view(3, 1, 1)).flatten().tolist() == [0, 128, 255]


def test_pixels_are_laid_out_as_files_want_them() -> None:
    pixels = torch.zeros(3, 2, 5)
    pixels[0, 1, 4] = 1
    made = to_uint8(pixels)
    assert made.shape == (2, 5, 3)
    assert made.is_contiguous()
    assert made[1, 4].tolist() == [255, 128, 128]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"), [("a.png", "png"), ("a.WebP", "webp"), ("a.jpg", "jpeg"), ("a.JPEG", "jpeg")]
)
def test_suffix_names_the_format(name: str, format: str) -> None:  # noqa: A002
    assert format_of(name) == format


@pytest.mark.parametrize("name", ["a", "a.tiff", ".png", "a.png.bak"])
def test_unknown_suffix_is_refused(name: str) -> None:
    with pytest.raises(OutputPathError, match=r"suffix.*; pictures are \.png, \.webp, \.jpg, \.jpeg"):
        format_of(name)


def test_file_is_written_with_the_users_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_whole(tmp_path / "picture", b"data")
    assert (tmp_path / "picture").read_bytes() == b"data"
    assert len(list(tmp_path.iterdir())) == 2
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_existing_file_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"old")
    with pytest.raises(OutputPathError, match="exists"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    write_whole(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_link_is_followed_not_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_whole(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("name", ["none/picture", ".", "pipe", "loop", "lost"])
def test_place_that_takes_no_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("none/picture")
    with pytest.raises(OutputPathError):
        write_whole(tmp_path / name, b"data", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loop", "lost", "pipe"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("file", "is a file, not a folder"),
        ("file/below", "there is no folder"),
        ("lost", "is a link to no folder"),
        ("none/below", "there is no folder"),
        ("x" * 300, "File name too long"),
        ("nul\0", "null"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to("nowhere")
    with pytest.raises(OutputPathError, match=words):
        check_folder(tmp_path / name)
    for good in (tmp_path, tmp_path / "new"):
        check_folder(good)


def test_a_folder_that_another_process_makes_meanwhile_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, is_dir = tmp_path / "out", Path.is_dir

    def look_and_make(path: Path) -> bool:
        was_there = is_dir(path)
        folder.mkdir(exist_ok=True)
        return was_there

    monkeypatch.setattr(Path, "is_dir", look_and_make)
    check_folder(folder)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", ["fsync", "link", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_failure_at_any_step_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str, overwrite: bool
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    path = tmp_path / "picture"
    if overwrite:
        path.write_bytes(b"old")
    if step == "link":
        monkeypatch.setattr(os, "link", fail)
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    works = step == "replace" and not overwrite  # a new file is linked, not renamed
    if works:
        write_whole(path, b"new")
    else:
        with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
            write_whole(path, b"new", overwrite=overwrite)
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert left == ({"picture": b"old"} if overwrite else {"picture": b"new"} if works else {})


def test_file_system_without_links_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unable)
    write_whole(tmp_path / "picture", b"data")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"data"]
