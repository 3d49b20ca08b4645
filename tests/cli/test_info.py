"""`star info`: the recipe that a picture carries."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from star_cli.images import encode_image, read_recipe
from tests.cli.command import Star

WHITE = torch.full((8, 8, 3), 255, dtype=torch.uint8)


def test_recipe_is_shown_one_value_a_line(draw: Star, star: Star) -> None:
    draw("a red circle", "--seed", 5)
    result = star("info", "a-red-circle-5.png")
    assert (result.exit_code, result.stderr) == (0, "")
    shown = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert [shown[name] for name in ("prompt", "negative", "seed", "top_p")] == ["a red circle", "", "5", "0.95"]
    assert list(shown) == list(read_recipe("a-red-circle-5.png"))


def test_json_is_one_object_with_the_path(draw: Star, star: Star) -> None:
    draw("x")
    told = json.loads(star("info", "x-0.png", "--json").stdout)
    assert told == {"path": "x-0.png", **read_recipe("x-0.png")}


def test_the_path_is_where_the_picture_lies_whatever_its_recipe_says(star: Star, folder: Path) -> None:
    (folder / "strange.png").write_bytes(encode_image(WHITE, {"prompt": "x", "path": "/etc/other"}, "png"))
    told = json.loads(star("info", "strange.png", "--json").stdout)
    assert list(told.items()) == [("path", "strange.png"), ("prompt", "x")]


def test_recipe_of_a_stranger_cannot_steer_the_terminal(star: Star, folder: Path) -> None:
    strange = {"prompt": "\x1b]0;title\x07\nnext\u202eback", "a\x1bkey": [1, None]}
    (folder / "strange.png").write_bytes(encode_image(WHITE, strange, "png"))
    result = star("info", "strange.png")
    assert result.stdout == "prompt: \\x1b]0;title\\x07\\nnext\\u202eback\na\\x1bkey: [1, null]\n"


def test_picture_without_recipe_is_an_error_with_a_reason(star: Star, folder: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "plain.png")
    result = star("info", "plain.png")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: plain.png: carries no recipe\nhint: only pictures that star drew do, until a program drops it\n"
    )


def test_what_is_no_picture_is_an_error(star: Star, folder: Path) -> None:
    (folder / "text.png").write_text("no picture")
    for name, words in (
        ("text.png", "not a picture that can be read"),
        ("missing.png", "No such file or directory"),
        (".", "Is a directory"),
    ):
        result = star("info", name)
        assert (result.exit_code, result.stderr) == (2, f"error: {name}: {words}\n")
