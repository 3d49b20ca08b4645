"""Bad input: one clear line, a way out where there is one, the right exit code, nothing left behind."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import Result

from star_cli.cli.request import make_request
from star_cli.errors import OptionError
from star_cli.generation.options import LARGEST_SEED
from star_cli.images import read_recipe
from star_cli.pipeline import StarPipeline
from tests.cli.command import Star, Start


def assert_refused(result: Result, words: str, hint: str | None = "", exit_code: int = 2) -> None:
    """One error line with these words; a hint line with those, None when there is to be none."""
    lines = result.stderr.splitlines()
    assert result.exit_code == exit_code, result.stderr
    assert result.stdout == ""
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    if hint is None:
        assert len(lines) == 1
    elif hint:
        assert lines[1].startswith("hint: ")
        assert hint in lines[1]
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["--res", "300"], "model tiny draws 32 or 64 pixels, not 300", "use --res 64"),
        (["--res", "0"], "--res must be a whole number of at least 1, not 0", None),
        (["--res", "-64"], "--res must be a whole number of at least 1, not -64", None),
        (["--res", "big"], "invalid value for '--res': 'big' is not a whole number", "star generate --help"),
        (["--seed", "-1"], "--seed must be a whole number of at least 0, not -1", None),
        (["--seed", str(2**63)], f"--seed must be at most {LARGEST_SEED}, not {2**63}", None),
        (["--seed", "1.5"], "'1.5' is not a whole number", "star generate --help"),
        (["--num", "0"], "--num must be a whole number of at least 1, not 0", None),
        (["--num", "-3"], "--num must be a whole number of at least 1, not -3", None),
        (["--top-k", "0"], "--top-k must be a whole number of at least 1, not 0", None),
        (["--top-k", "-5"], "--top-k must be a whole number of at least 1, not -5", None),
        (["--top-p", "1.5"], "--top-p must be a number above 0 and at most 1, not 1.5", None),
        (["--top-p", "0"], "--top-p must be a number above 0 and at most 1, not 0", None),
        (["--top-p", "nan"], "--top-p must be a number above 0 and at most 1, not nan", None),
        (["--num", "9" * 22], f"--num must be at most {LARGEST_SEED}, not {'9' * 22}", None),
        (["--temperature", "-1"], "--temperature must be 0, or a number of at least 0.0001, not -1", None),
        (
            ["--speed", "fast", "--compat", "official"],
            "--compat official draws as the published code does",
            "give --speed exact",
        ),
        (["--temperature", "inf"], "--temperature must be 0, or a number of at least 0.0001, not inf", None),
        (["--guidance", "nan"], "--guidance must be a number from 0 to 1000, not nan", None),
        (["--guidance", "much"], "'much' is not a number", "star generate --help"),
        (["--format", "gif"], "'gif' is not one of 'png', 'webp', 'jpeg'", "star generate --help"),
        (["--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda', 'mps'", "star generate --help"),
        (["--dtype", "int8"], "'int8' is not one of", "star generate --help"),
        (["--speed", "quick"], "'quick' is not one of 'reference', 'exact', 'fast', 'turbo'", "star generate --help"),
        (["--sed", "1"], "no such option: --sed", "star generate --help"),
        (["--seed"], "option '--seed' requires an argument", "--help"),
        (["--json", "--out", "-"], "--json and --out - both write to standard output", "star info"),
    ],
)
def test_value_that_cannot_be_used_is_refused(
    star: Star, folder: Path, tiny_model_folder: Path, arguments: list[str], words: str, hint: str | None
) -> None:
    result = star("generate", "x", "--model", tiny_model_folder, *arguments)
    assert_refused(result, words, hint)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("prompt", ["", " ", "\t\n", "\u3000"])
def test_empty_prompt_is_refused(draw: Star, prompt: str) -> None:
    assert_refused(draw(prompt), "the prompt is empty", "say what to draw")
    assert_refused(draw("a red circle", prompt), "the prompt is empty", "say what to draw")


def test_no_prompt_is_refused(draw: Star) -> None:
    assert_refused(draw(), "there is no prompt", "say what to draw")
    assert_refused(draw("-", input=" \n\n"), "there is no prompt on standard input", "one prompt a line")
    assert_refused(draw("-", "-", input="x"), "- is given twice", "once")


def test_standard_input_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.open(os.devnull, os.O_WRONLY), "rb") as closed:  # as `0>/dev/null` makes it
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(closed))
        with pytest.raises(OptionError, match="standard input cannot be read: Bad file descriptor"):
            make_request(["-"], None, {}, None, {})


def test_unknown_command_is_refused(star: Star) -> None:
    assert_refused(star("generat"), "no such command 'generat'", "star --help")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the missing device is there")
def test_device_that_is_not_here_is_refused(draw: Star) -> None:
    assert_refused(draw("x", "--device", "cuda"), "--device cuda: torch sees no such device here", "--device auto")


def test_bytes_that_are_not_utf8_are_refused(draw: Star, folder: Path) -> None:
    assert_refused(draw("-", input=b"red \xff circle\n"), "not UTF-8: red \\udcff circle", "UTF-8")
    assert_refused(draw("x", "--negative", "\udcff"), "not UTF-8: \\udcff", "UTF-8")
    assert list(folder.iterdir()) == []


def test_prompt_too_long_for_a_jpeg_is_refused_before_drawing(draw: Star, folder: Path) -> None:
    assert_refused(draw("丸" * 20_000, "--format", "jpeg"), "a JPEG carries a recipe of at most", "--format png")
    assert list(folder.iterdir()) == []


# -- models -----------------------------------------------------------------------------------------------------------


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of a file, and make the config know the new file."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    config = json.loads((folder / "config.json").read_text())
    data = (folder / name).read_bytes()
    config["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / "config.json").write_text(json.dumps(config))


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def add_foreign_key(tensors: dict[str, Any]) -> None:
    tensors["foreign.weight"] = torch.zeros(1)


def drop_key(tensors: dict[str, Any]) -> None:
    del tensors["level_embedding.weight"]


def reshape_key(tensors: dict[str, Any]) -> None:
    tensors["level_embedding.weight"] = tensors["level_embedding.weight"][:, :-1].contiguous()


T = "transformer.safetensors"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / T).unlink(), f"{T}: missing"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: os.truncate(folder / T, 1000), f"{T}: 1,000 bytes, expected "),
        (lambda folder: flip_last_byte(folder / T), f"{T}: hash is "),
        (lambda folder: rewrite(folder, T, add_foreign_key), "foreign.weight"),
        (lambda folder: rewrite(folder, T, drop_key), "level_embedding.weight"),
        (lambda folder: rewrite(folder, T, reshape_key), "level_embedding.weight"),
    ],
    ids=["missing", "no config", "broken config", "truncated", "flipped byte", "foreign key", "missing key", "shape"],
)
def test_damaged_model_folder_is_refused(
    star: Star, folder: Path, own_model_folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(own_model_folder)
    assert_refused(star("generate", "x", "--model", own_model_folder), words)
    assert list(folder.iterdir()) == []


def test_unknown_model_is_refused(star: Star, folder: Path) -> None:
    assert_refused(star("generate", "x", "--model", "nobody"), "no model is called 'nobody'", "star models")
    (folder / "file").write_text("")
    assert_refused(star("generate", "x", "--model", "file"), "is a file, not a model folder")


# -- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": "abc"}, "its recipe has a wrong seed: 'abc'"),
        ({"seed": True}, "its recipe has a wrong seed: True"),
        ({"prompt": None}, "its recipe has a wrong prompt: None"),
        ({"guidance": 10**400}, "its recipe has a wrong guidance: 1000"),
        ({"top_p": 7}, "--top-p must be a number above 0 and at most 1, not 7"),
        ({"res": 48}, "draws 32 or 64 pixels, not 48"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_recipe_that_cannot_be_repeated_is_refused(
    draw: Star, folder: Path, tiny_pipeline: StarPipeline, change: dict[str, Any], words: str
) -> None:
    (image,) = tiny_pipeline("x")
    image.recipe.update(change)
    image.save(folder / "strange.png")
    assert_refused(draw("--from-image", "strange.png"), words)
    assert len(list(folder.iterdir())) == 1


def test_picture_without_a_whole_recipe_is_refused(draw: Star, folder: Path, tiny_pipeline: StarPipeline) -> None:
    (image,) = tiny_pipeline("x")
    del image.recipe["seed"]
    image.save(folder / "half.png")
    image.to_pil().save(folder / "plain.png")
    assert_refused(draw("--from-image", "half.png"), "its recipe does not say seed", None)
    assert_refused(draw("--from-image", "plain.png"), "carries no recipe", "only pictures that star drew")
    assert_refused(draw("--from-image", "none.png"), "none.png: No such file or directory", None)


def test_a_name_that_no_model_can_have_is_refused(star: Star, folder: Path, tiny_pipeline: StarPipeline) -> None:
    (image,) = tiny_pipeline("x")
    image.recipe["model"] = "x" * 5000
    image.save(folder / "strange.png")
    assert_refused(star("generate", "--from-image", "strange.png"), "the picture was drawn with 'xxx", "--model")
    assert_refused(star("generate", "x", "--model", "x" * 5000), "xxx", None)
    assert_refused(star("batch", "-", "--model", "x" * 5000, input="x"), "xxx", None)


# -- output -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads a model: these errors must come before."""

    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(StarPipeline, "from_pretrained", load)


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["--out", "folder.png"], "folder.png is a folder, not a file", "--out folder.png/"),
        (["--out", "old.png"], "old.png exists", "--force"),
        (["--out", "old.png/"], "old.png is a file, not a folder", "another name"),
        (["--out", "none/x.png"], "there is no folder none", "make the folder"),
        (["--out", "none/deep/"], "there is no folder none", "make the folder"),
        (["--out", "x.tiff"], "unknown suffix '.tiff'", "picture.png"),
        (["--out", "x.tiff", "--format", "png"], "unknown suffix '.tiff'", "picture.png"),
        (["--out", "x"], "no suffix", "picture.png"),
        (["--out", ""], "--out is empty", "give a file"),
        (["--out", "x.png", "--format", "jpeg"], "x.png is to be a png file, but --format says jpeg", ".jpg"),
        (["--out", "x.png", "--num", "2"], "x.png takes one picture, not 2", "--out x/"),
        (["--out", "-", "--num", "2"], "--out - takes one picture, not 2", "folder"),
        (["--out", "/dev/null", "--format", "png", "--force"], "/dev/null is not a regular file", "--out -"),
        (["--out", f"{'x' * 300}.png"], "File name too long", None),
        (["--out", f"{'x' * 300}/"], "File name too long", None),
        (["--out", "lost/"], "lost is a link to no folder", "another name"),
        (["--out", "lost.png", "--force"], "it leads to", "make the folder"),
        (["--out", "loop.png", "--force"], "loop.png is a link to itself", "another name"),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_drawing(
    draw: Star, folder: Path, arguments: list[str], words: str, hint: str | None
) -> None:
    (folder / "folder.png").mkdir()
    (folder / "old.png").write_bytes(b"old")
    for name, end in (("lost", "nowhere"), ("lost.png", "nowhere/x.png"), ("loop.png", "loop.png")):
        (folder / name).symlink_to(end)
    before = sorted(folder.iterdir())
    assert_refused(draw("x", *arguments), words, hint)
    assert sorted(folder.iterdir()) == before
    assert (folder / "old.png").read_bytes() == b"old"


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("out", ["/proc/x.png", "/proc/"])
def test_unwritable_folder_is_refused_before_drawing(draw: Star, out: str) -> None:
    assert_refused(draw("x", "--out", out), "cannot write into /proc", "a folder that you may write to")


@pytest.mark.parametrize("arguments", [[], ["--out", "x.png"], ["--out", "x.png", "--force"]])
def test_full_disk_is_told_and_leaves_nothing(
    draw: Star, folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    if "--force" in arguments:
        (folder / "x.png").write_bytes(b"old")
    assert_refused(draw("x", *arguments), "No space left on device", "make room", exit_code=1)
    if "--force" in arguments:
        assert (folder / "x.png").read_bytes() == b"old"
    else:
        assert list(folder.iterdir()) == []


# -- failures while working -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (RuntimeError("boom\nand more"), "internal: RuntimeError: boom\\nand more", "--debug"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory", "--res"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory", "--res"),
        (MemoryError(), "out of memory", "--res"),
    ],
)
def test_failure_while_drawing_is_one_line(
    draw: Star, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, hint: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(StarPipeline, "__call__", fail)
    assert_refused(draw("x"), words, hint, exit_code=1)
    debugged = draw("x", "--debug")
    assert debugged.stderr.startswith("Traceback (most recent call last):\n")
    assert words in debugged.stderr
    monkeypatch.setenv("STAR_DEBUG", "1")
    assert draw("x").stderr.startswith("Traceback")


def test_ctrl_c_is_130_and_one_word(draw: Star, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StarPipeline, "__call__", interrupt)
    result = draw("x")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")
    assert list(folder.iterdir()) == []


# -- as a process -----------------------------------------------------------------------------------------------------


def test_invalid_utf8_argument_is_refused(start: Start) -> None:
    process = start("generate", b"red \xff\xfe circle")
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (2, b"")
    assert stderr.startswith(b"error: the prompt holds bytes that are not UTF-8: red \\udcff\\udcfe circle\nhint: ")


def assert_whole(folder: Path) -> int:
    """Every file is a picture with a recipe; their number."""
    files = list(folder.iterdir())
    for path in files:
        assert read_recipe(path)["prompt"] == "x"
    return len(files)


@pytest.mark.parametrize(
    ("number", "exit_code", "word"), [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")]
)
def test_signal_in_the_middle_leaves_whole_pictures(
    start: Start, folder: Path, tiny_model_folder: Path, number: signal.Signals, exit_code: int, word: bytes
) -> None:
    process = start("generate", "x", "--num", "100000", "--model", tiny_model_folder)
    assert process.stdout.readline() == b"x-0.png\n"  # drawing: torch is loaded, a first pass is done
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr) == (exit_code, word + b"\n")
    assert assert_whole(folder) >= 1


def test_stdout_closed_early_still_draws_all(start: Start, folder: Path, tiny_model_folder: Path) -> None:
    process = start("generate", "x", "--num", "12", "--model", tiny_model_folder)
    assert process.stdout.readline() == b"x-0.png\n"
    process.stdout.close()  # as `| head -1` does
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=120), stderr) == (0, b"")
    assert assert_whole(folder) == 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("arguments", [["info", "x.png"], ["--help"]])
def test_full_stdout_is_told(start: Start, folder: Path, tiny_pipeline: StarPipeline, arguments: list[str]) -> None:
    tiny_pipeline("x")[0].save(folder / "x.png")
    with Path("/dev/full").open("wb") as full:
        process = start(*arguments, stdout=full.fileno())
        _, stderr = process.communicate()
    words = b"error: cannot write to standard output: No space left on device\n"
    assert (process.returncode, stderr) == (1, words)


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"]])
def test_help_into_a_closed_pipe_is_quiet(start: Start, arguments: list[str]) -> None:
    process = start(*arguments)
    process.stdout.close()  # before the first word
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=120), stderr) == (0, b"")
