"""Pictures of every kind become the same square of pixels, and what cannot be read is named."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from star_cli.data.transforms import image_tensor, read_picture, to_square
from star_cli.errors import BadImageError
from tests.data.builders import encoded, noise, put

RNG = random.Random(0)


def read(data: bytes, shorter: int = 64) -> Image.Image:
    return read_picture(io.BytesIO(data), "x", shorter).image


def read_pixel(image: Image.Image, kind: str = "PNG", **options: object) -> tuple[int, ...]:
    found = read(encoded(image, kind, **options)).getpixel((0, 0))
    assert isinstance(found, tuple)
    return found


# -- squares ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.sampled_from(["centre", "random"]))
def test_every_size_becomes_a_square_in_range(width: int, height: int, resolution: int, crop: str) -> None:
    pixels = to_square(noise(width, height), resolution, crop, random.Random(0))  # type: ignore[arg-type]
    assert pixels.shape == (3, resolution, resolution)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_a_square_of_the_right_size_is_left_as_it_is() -> None:
    image = noise(32, 32)
    assert torch.equal(to_square(image, 32, "centre", RNG), image_tensor(image))


@pytest.mark.parametrize("turned", [False, True])
def test_centre_crop_takes_the_middle(turned: bool) -> None:
    stripes = np.zeros((20, 60, 3), dtype=np.uint8)
    stripes[:, 20:40] = (200, 100, 50)
    image = Image.fromarray(stripes.transpose(1, 0, 2) if turned else stripes)
    inside = to_square(image, 20, "centre", RNG)
    assert torch.equal(inside, image_tensor(Image.new("RGB", (20, 20), (200, 100, 50))))


def test_crop_after_resize_equals_resize_of_the_crop() -> None:
    image = noise(96, 48)
    whole = image.resize((64, 32), Image.Resampling.LANCZOS)
    difference = to_square(image, 32, "centre", RNG) - image_tensor(whole.crop((16, 0, 48, 32)))
    assert difference.abs().max() <= 2 / 127.5  # rounding of the two passes


def test_random_crops_follow_the_generator_and_reach_both_ends() -> None:
    ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 80).astype(np.uint8)[None, :, None], 20, 0).repeat(3, 2))
    means = [to_square(ramp, 20, "random", random.Random(seed)).mean().item() for seed in range(60)]
    assert means == [to_square(ramp, 20, "random", random.Random(seed)).mean().item() for seed in range(60)]
    assert min(means) < -0.6
    assert max(means) > 0.6


def test_reduction_is_antialiased() -> None:
    board = np.indices((256, 256)).sum(0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    assert to_square(image, 32, "centre", RNG).abs().max() < 0.1  # grey, not some of the black and white


# -- kinds of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])  # Pillow turns a TIFF by itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    """Against the rows and columns that Exif 2.3 names for each value."""
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored[::-1].T,
        7: stored[::-1, ::-1].T,
        8: stored[:, ::-1].T,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(io.BytesIO(encoded(Image.fromarray(stored), kind, exif=exif)), "x", 64)
    assert np.array_equal(np.asarray(picture.image)[..., 0], upright)
    assert (picture.width, picture.height) == picture.image.size


def test_damaged_exif_costs_nothing() -> None:
    data = encoded(noise(8, 8), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read(data).size == (8, 8)


def test_what_shines_through_is_white() -> None:
    assert read_pixel(Image.new("RGBA", (2, 2), (0, 0, 255, 0))) == (255, 255, 255)
    assert read_pixel(Image.new("RGBA", (2, 2), (0, 0, 255, 255))) == (0, 0, 255)
    half = read_pixel(Image.new("RGBA", (2, 2), (0, 0, 255, 128)))
    assert half == (127, 127, 255)
    assert read_pixel(Image.new("LA", (2, 2), (0, 0))) == (255, 255, 255)


def test_transparent_colour_of_a_palette_and_of_rgb_is_white() -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert read_pixel(palette) == (10, 200, 30)
    assert read_pixel(palette, transparency=1) == (255, 255, 255)
    assert read_pixel(palette, "GIF", transparency=1) == (255, 255, 255)
    assert read_pixel(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)) == (255, 255, 255)


def test_grey_and_bitmaps_become_rgb() -> None:
    assert read_pixel(Image.new("L", (2, 2), 77)) == (77, 77, 77)
    assert read_pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_16_bits_keep_their_range(kind: str, value: int, expected: int) -> None:
    image = Image.fromarray(np.full((2, 2), value, dtype=np.uint16))
    assert read_pixel(image, kind) == (expected, expected, expected)


def test_cmyk_becomes_rgb() -> None:
    red, green, blue = read_pixel(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert red > 240
    assert max(green, blue) < 15


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert read_pixel(frames[0], "GIF", save_all=True, append_images=frames[1:]) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000"])
def test_known_kinds_are_read(kind: str) -> None:
    difference = np.asarray(read(encoded(noise(24, 16), kind)), dtype=int) - np.asarray(noise(24, 16))
    assert np.abs(difference).mean() < 12


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size_and_looks_the_same() -> None:
    large = noise(1600, 1200)
    picture = read_picture(io.BytesIO(encoded(large, "JPEG", quality=95)), "x", 64)
    assert (picture.width, picture.height) == (1600, 1200)
    assert picture.image.size == (200, 150)
    difference = to_square(picture.image, 64, "centre", RNG) - to_square(large, 64, "centre", RNG)
    assert difference.abs().mean() < 0.01


# -- bad files --------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def large_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be an enormous picture."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def cut(kind: str) -> bytes:
    data = encoded(noise(300, 200), kind)
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a picture that can be read"),
        (b"<html>404</html>", "not a picture that can be read"),
        (cut("JPEG"), "truncated"),
        (cut("PNG"), "truncated|broken"),
        (cut("WEBP"), ""),
        (large_png(30_000, 30_000), "decompression bomb"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)), "TIFF"), "beyond 16 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture that can be read"),
    ],
    ids=["empty", "html", "jpeg", "png", "webp", "bomb", "float", "32 bits", "postscript"],
)
def test_a_bad_file_is_named_with_its_reason(data: bytes, words: str, tmp_path: Path) -> None:
    path = put(tmp_path / "bad.jpg", data)
    with pytest.raises(BadImageError, match=f"(?i)^bad file: .*({words})"):
        read_picture(path, "bad file", 64)
    with pytest.raises(BadImageError, match=r"^x: "):
        read(data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"^gone: No such file or directory$"):
        read_picture(tmp_path / "gone.jpg", "gone", 64)


@given(st.binary(max_size=64), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]))
def test_any_damage_is_a_bad_image_or_harmless(junk: bytes, at: int, kind: str) -> None:
    data = bytearray(encoded(noise(40, 30), kind))
    data[at : at + len(junk)] = junk
    with suppress(BadImageError):
        assert read(bytes(data)).mode == "RGB"


def test_pillows_warnings_are_silent_in_many_threads_and_filters_are_left_alone() -> None:
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    data = encoded(palette, transparency=bytes([0, 128]))  # Pillow warns of its conversion
    before = warnings.filters[:]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read(data).getpixel((0, 0)), range(64)))
    assert len(set(found)) == 1
    assert warnings.filters == before


def test_an_error_without_words_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise EOFError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(BadImageError, match=r"^a\.gif: EOFError$"):
        read_picture(Path("a.gif"), "a.gif", 8)
