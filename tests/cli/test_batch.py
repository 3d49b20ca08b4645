"""`star batch` and `star sheet`: what goes in, what is said, how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from star_cli.errors import OutputError
from star_cli.generated import GeneratedImage
from star_cli.images import read_recipe
from star_cli.jobs import ImageJob
from star_cli.pipeline import StarPipeline
from tests.cli.command import Star


@pytest.fixture
def batch(star: Star, tiny_model_folder: Path) -> Star:
    """`star batch` with the tiny model."""

    def run(*arguments: object, input: str | bytes | None = None) -> Any:  # noqa: A002
        return star("batch", *arguments, "--model", tiny_model_folder, input=input)

    return run


@pytest.fixture
def prompts(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("# two\na red circle\n\na cat\n")
    return path


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


# -- what is drawn ----------------------------------------------------------------------------------------------------


def test_a_file_of_prompts_is_drawn_into_a_folder_of_its_name(batch: Star, folder: Path, prompts: Path) -> None:
    result = batch(prompts.name)
    assert (result.exit_code, result.stdout) == (
        0,
        "prompts/00001-a-red-circle-0.png\nprompts/00002-a-cat-0.png\n",
    ), result.stderr
    assert re.fullmatch(r"2 drawn in \d+:\d\d \(.* images/s\)", result.stderr.splitlines()[-1])
    names = sorted(path.name for path in (folder / "prompts").iterdir())
    assert names == ["00001-a-red-circle-0.png", "00002-a-cat-0.png", "star-batch.jsonl"]


def test_each_image_is_the_one_that_generate_draws(
    batch: Star, star: Star, folder: Path, tiny_model_folder: Path
) -> None:
    flags = ["--res", 64, "--top-k", 5, "--negative", "blue", "--guidance", 1.5]
    batch("-", "--out", "all", "--num", 2, "--seed", 3, *flags, input="a red circle\na cat\n")
    star("generate", "a cat", "--seed", 4, "--out", "alone.png", "--model", tiny_model_folder, *flags)
    assert (folder / "all" / "00004-a-cat-4.png").read_bytes() == (folder / "alone.png").read_bytes()


def test_called_again_it_draws_what_is_new_and_says_what_was_here(batch: Star, prompts: Path) -> None:
    batch(prompts.name)
    prompts.write_text(prompts.read_text() + "a dog\n")
    result = batch(prompts.name)
    assert (result.exit_code, result.stdout) == (0, "prompts/00003-a-dog-0.png\n")
    assert "2 were here" in result.stderr


def test_standard_input_goes_into_batch(batch: Star, folder: Path) -> None:
    assert batch("-", input="\ufeffx\r\n").stdout == "batch/00001-x-0.png\n"
    rows = batch("-", "--input-format", "jsonl", "--out", "b", input='{"prompt": "y", "seed": 5, "out": "z.webp"}')
    assert rows.stdout == "b/z.webp\n"
    assert read_recipe(folder / "b" / "z.webp")["seed"] == 5


def test_template_and_format_name_the_files(batch: Star) -> None:
    result = batch("-", "--template", "{res}/{slug}.webp", input="x\n")
    assert result.stdout == "batch/32/x.webp\n"
    assert batch("-", "--out", "b", "--format", "jpeg", input="x\n").stdout == "b/00001-x-0.jpg\n"


def test_quiet_says_nothing(batch: Star, prompts: Path) -> None:
    result = batch(prompts.name, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")


def test_json_tells_every_event(batch: Star, prompts: Path) -> None:
    batch("-", "--out", "prompts", input="a red circle\n")
    start, kept, done, end = events_of(batch(prompts.name, "--json").stdout)
    assert start == {"event": "start", "jobs": 2, "folder": "prompts"}
    assert (kept["event"], kept["prompt"], kept["path"]) == ("kept", "a red circle", "prompts/00001-a-red-circle-0.png")
    assert (done["event"], done["line"], done["seed"], done["res"], len(done["sha256"])) == ("done", 4, 0, 32, 64)
    assert (end["done"], end["kept"], end["failed"], end["missing"]) == (1, 1, 0, 0)


def test_shards_draw_what_one_run_draws(batch: Star, folder: Path) -> None:
    text = "a\nb\nc\n"
    assert batch("-", "--shard", "2/2", "--out", "parts", input=text).stdout == "parts/00002-b-0.png\n"
    assert batch("-", "--shard", "1/2", "--out", "parts", input=text).stdout.count("\n") == 2
    batch("-", "--out", "whole", input=text)
    parts, whole = (
        {path.name: path.read_bytes() for path in (folder / out).glob("*.png")} for out in ("parts", "whole")
    )
    assert len(whole) == 3
    assert parts == whole


# -- before anything is drawn -----------------------------------------------------------------------------------------


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(StarPipeline, "from_pretrained", load)


@pytest.mark.usefixtures("no_drawing")
def test_bad_input_is_told_whole_before_work(batch: Star, folder: Path) -> None:
    (folder / "rows.csv").write_text("prompt,seed\nx,1\ny,-1\n,2\nz,zero\n")
    result = batch("rows.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "rows.csv:3: --seed must be a whole number of at least 0, not -1",
        "rows.csv:4: there is no prompt",
        "rows.csv:5: seed must be a whole number, not 'zero'",
        "error: 3 lines of the input cannot be drawn",
        "hint: nothing was drawn: correct the input",
    ]
    assert [path.name for path in folder.iterdir()] == ["rows.csv"]


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.txt"], "none.txt: No such file or directory"),
        (["."], ".: Is a directory"),
        (["-", "--res", "300"], "model tiny draws 32 or 64 pixels, not 300"),
        (["-", "--template", "../{slug}"], "leads out of the folder"),
        (["-", "--template", "{sluk}"], "unknown field {sluk}"),
        (["-", "--batch-size", "0"], "neither auto nor a whole number"),
        (["-", "--max-failures", "0"], "--max-failures must be"),
        (["-", "--shard", "3/2"], "--shard must be I/N with I from 1 to N, not 3/2"),
        (["-", "--shard", "x"], "--shard must be I/N, not x"),
        (["-", "--devices", "cpu", "--device", "cpu"], "--devices stands alone"),
        (["-", "--devices", "9999"], "torch sees no such device here"),
        (["-", "--devices", "cpu,,cpu"], "name each device"),
        (["-", "--devices", "cpu:"], "--device must be auto, cuda, mps, cpu, not cpu:"),
        (["-", "--num", str(2**63 - 1)], "a batch is at most 1,000,000,000 images"),
        (["-", "--num", str(2**63 - 1), "--contact-sheet", "sheet.png", "--dry-run"], "a batch is at most"),
        (["-", "--contact-sheet", "sheet.gif"], "unknown suffix '.gif'"),
        (["-", "--contact-sheet", "none/sheet.png"], "there is no folder none"),
        (["-", "--compat", "official", "--dtype", "bfloat16"], "--compat official needs the weights in float32"),
    ],
)
def test_what_cannot_be_done_is_refused(batch: Star, folder: Path, arguments: list[str], words: str) -> None:
    result = batch(*arguments, input="x\n")
    assert result.exit_code == 2
    assert words in result.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("no_drawing")
@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("file", "file is a file, not a folder"),
        ("none/deep", "there is no folder none"),
        ("lost", "lost is a link to no folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_folder_that_cannot_be_made_is_refused(
    batch: Star, folder: Path, where: str, words: str, flags: list[str]
) -> None:
    (folder / "file").touch()
    (folder / "lost").symlink_to("nowhere")
    result = batch("-", "--out", where, *flags, input="x\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert words in result.stderr


@pytest.mark.usefixtures("no_drawing")
def test_dry_run_lists_jobs_and_leaves_nothing(batch: Star, folder: Path, prompts: Path) -> None:
    result = batch(prompts.name, "--dry-run")
    assert result.exit_code == 0
    assert [line.split("\t") for line in result.stdout.splitlines()] == [
        ["draw", "prompts/00001-a-red-circle-0.png", "0", "32", "a red circle"],
        ["draw", "prompts/00002-a-cat-0.png", "0", "32", "a cat"],
    ]
    assert result.stderr == "2 to draw: time unknown before a first image, at most 0.0 MB\n"
    assert [path.name for path in folder.iterdir()] == ["prompts.txt"]


def test_dry_run_knows_what_is_done(batch: Star, folder: Path, prompts: Path) -> None:
    batch("-", "--out", "prompts", input="a red circle\n")
    job, other, plan = events_of(batch(prompts.name, "--dry-run", "--json").stdout)
    assert (job["state"], other["state"], other["path"]) == ("kept", "draw", "prompts/00002-a-cat-0.png")
    assert (plan["event"], plan["draw"], plan["kept"]) == ("plan", 1, 1)
    assert plan["seconds"] >= 0
    assert plan["bytes"] == pytest.approx((folder / "prompts" / "00001-a-red-circle-0.png").stat().st_size)


# -- failures ---------------------------------------------------------------------------------------------------------


def test_some_failed_is_exit_code_1_with_their_names(batch: Star, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = StarPipeline.draw_jobs

    def draw_jobs(self: StarPipeline, jobs: Sequence[ImageJob], **options: Any) -> Iterator[GeneratedImage]:
        if any(job.subject == "bad" for job in jobs):
            raise RuntimeError("boom")
        yield from draw(self, jobs, **options)

    monkeypatch.setattr(StarPipeline, "draw_jobs", draw_jobs)
    result = batch("-", input="x\nbad\ny\n")
    assert result.exit_code == 1
    assert result.stdout == "batch/00001-x-0.png\nbatch/00003-y-0.png\n"
    assert result.stderr.splitlines()[-3:] == [
        "error: 1 of 3 images failed",
        "  line 2, 'bad', seed 0: RuntimeError: boom",
        "hint: call it again with --retry-failed",
    ]
    again = batch("-", "--json", input="x\nbad\ny\n")
    assert again.exit_code == 1
    assert [event["event"] for event in events_of(again.stdout)][1:-1] == ["kept", "failed before", "kept"]
    monkeypatch.setattr(StarPipeline, "draw_jobs", draw)
    assert batch("-", "--retry-failed", input="x\nbad\ny\n").exit_code == 0


def test_a_repaired_journal_is_told(batch: Star, folder: Path) -> None:
    batch("-", input="x\n")
    with (folder / "batch" / "star-batch.jsonl").open("ab") as journal:
        journal.write(b'{"v": 1, "jo')
    result = batch("-", input="x\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "warning: star-batch.jsonl: 1 line (2) could not be read" in result.stderr


# -- sheets -----------------------------------------------------------------------------------------------------------


def test_contact_sheet_holds_every_image(batch: Star, folder: Path) -> None:
    result = batch("-", "--contact-sheet", "sheet.png", input="a\nb\nc\n")
    assert result.exit_code == 0, result.stderr
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size == (2 * 200 + 8, 2 * (192 + 52 + 8) + 8)
        for name, column, row in (("00001-a-0", 0, 0), ("00002-b-0", 1, 0), ("00003-c-0", 0, 1)):
            left, top = 8 + column * 200 + 80, 8 + row * 252 + 80  # in the middle of its cell
            with Image.open(folder / "batch" / f"{name}.png") as image:
                assert image.size == (32, 32)
                assert sheet.crop((left, top, left + 32, top + 32)).tobytes() == image.convert("RGB").tobytes()


def test_contact_sheet_replaces_a_sheet_and_no_other_picture(batch: Star, folder: Path) -> None:
    for prompts in ("a\n", "a\nb\nc\nd\ne\n"):
        assert batch("-", "--contact-sheet", "sheet.png", input=prompts).exit_code == 0
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size[0] == 3 * 200 + 8
    (folder / "holiday.png").write_bytes(before := (folder / "batch" / "00001-a-0.png").read_bytes())
    result = batch("-", "--out", "other", "--contact-sheet", "holiday.png", input="a\n")
    assert (result.exit_code, (folder / "other").exists()) == (2, False)
    assert result.stderr == "error: holiday.png exists\nhint: use another name\n"  # there is no --force
    assert (folder / "holiday.png").read_bytes() == before


@pytest.mark.parametrize("sheet", ["sh/00002-b-0.png", "sh/00002-B-0.png", "here/../sh/00002-b-0.png", "link.png"])
def test_contact_sheet_takes_no_place_of_an_image(batch: Star, folder: Path, sheet: str) -> None:
    (folder / "here").mkdir()
    (folder / "link.png").symlink_to("sh/00002-b-0.png")
    arguments = ["-", "--out", "sh", "--contact-sheet", sheet]
    for shard in ("1/2", "1/1"):  # before its folder is there, and when another process is to draw the image
        result = batch(*arguments, "--shard", shard, input="a\nb\n")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "is the place of an image of this batch" in result.stderr
        batch("-", "--out", "sh", "--shard", "1/2", input="a\nb\n")
    assert batch("-", "--out", "sh", input="a\nb\n").exit_code == 0
    assert batch(*arguments, input="c\n").exit_code == 2  # of an older input
    assert len(list((folder / "sh").glob("*.png"))) == 2


def test_a_picture_that_comes_while_the_batch_is_drawn_stays(
    batch: Star, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = StarPipeline.draw_jobs

    def draw_jobs(self: StarPipeline, jobs: Sequence[ImageJob], **options: Any) -> Iterator[GeneratedImage]:
        Image.new("RGB", (8, 8)).save(folder / "sheet.png")
        yield from draw(self, jobs, **options)

    monkeypatch.setattr(StarPipeline, "draw_jobs", draw_jobs)
    result = batch("-", "--contact-sheet", "sheet.png", input="a\n")
    assert (result.exit_code, result.stdout) == (1, "batch/00001-a-0.png\n")
    assert "error: no contact sheet: sheet.png exists" in result.stderr
    with Image.open(folder / "sheet.png") as picture:
        assert picture.size == (8, 8)


def test_contact_sheet_may_lie_in_the_folder_that_the_batch_makes(batch: Star, folder: Path) -> None:
    result = batch("-", "--out", "new", "--contact-sheet", "new/sheet.png", input="a\n")
    assert result.exit_code == 0, result.stderr
    assert (folder / "new" / "sheet.png").is_file()


def test_a_sheet_that_cannot_be_written_leaves_the_end_of_the_batch_told(
    batch: Star, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr("star_cli.batch.sheet.write_sheet", full)
    result = batch("-", "--json", "--contact-sheet", "sheet.png", input="a\n")
    assert result.exit_code == 1
    assert json.loads(result.stdout.splitlines()[-1])["event"] == "end"
    assert "error: no contact sheet: no space left" in result.stderr


@pytest.mark.parametrize(("name", "most"), [("sheet.webp", "16,383"), ("sheet.jpg", "65,500")])
def test_a_sheet_beyond_its_format_is_refused_before_anything_is_drawn(
    batch: Star, star: Star, folder: Path, name: str, most: str
) -> None:
    rows = "".join(f"{number}\n" for number in range(7000))
    if name == "sheet.webp":
        result = batch("-", "--contact-sheet", name, input=rows)
        assert (result.exit_code, list(folder.iterdir())) == (2, [])
        assert f"a webp is at most {most} pixels a side, this sheet is" in result.stderr
    small = Image.new("RGB", (16, 16))
    (folder / "many").mkdir()
    for number in range(40):
        small.save(folder / "many" / f"{number:02}.png")
    result = star("sheet", "many", "--columns", 1, "--cell", 2048, "--out", name)
    assert result.exit_code == 2
    assert f"at most {most} pixels a side" in result.stderr


def test_a_picture_of_too_many_pixels_leaves_its_place_empty(
    star: Star, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (64, 64)).save(folder / "large.png")
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    result = star("sheet", "large.png", "small.png", "--out", "sheet.png")
    assert (result.exit_code, result.stdout) == (0, "sheet.png\n")
    assert "warning: large.png cannot be read" in result.stderr


@pytest.mark.parametrize(("flag", "words"), [("--out", "--out is empty"), ("--template", "error: --template")])
def test_an_empty_name_is_no_name(batch: Star, folder: Path, flag: str, words: str) -> None:
    result = batch("-", flag, "", input="a\n")
    assert (result.exit_code, list(folder.iterdir())) == (2, [])
    assert words in result.stderr


def test_sheet_of_a_folder(star: Star, batch: Star, folder: Path) -> None:
    batch("-", input="a\nb\nc\n")
    (folder / "batch" / "broken.png").write_bytes(b"no picture")
    result = star("sheet", "batch", "--columns", 4, "--cell", 48, "--no-captions", "--out", "row.jpg")
    assert (result.exit_code, result.stdout) == (0, "row.jpg\n")
    assert "broken.png cannot be read" in result.stderr
    with Image.open(folder / "row.jpg") as sheet:
        assert (sheet.format, sheet.size) == ("JPEG", (4 * 56 + 8, 56 + 8))


def test_captions_tell_prompt_and_seed(star: Star, batch: Star, folder: Path) -> None:
    batch("-", input=f"a\n{'word ' * 60}\n{'x' * 300}\n赤い丸\n")
    assert star("sheet", "batch").exit_code == 0
    assert star("sheet", "batch", "--no-captions", "--out", "plain.png").exit_code == 0
    with Image.open(folder / "sheet.png") as sheet, Image.open(folder / "plain.png") as plain:
        assert sheet.width == plain.width
        assert sheet.height > plain.height
        below = sheet.crop((0, 200, sheet.width, 250))
        assert below.getextrema() != ((255, 255),) * 3  # ink


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "none: no such file or folder"),
        (["."], "there are no pictures for the sheet"),
        ([".", "--out", "x.bmp"], "unknown suffix '.bmp'"),
        ([".", "--columns", "0"], "--columns must be"),
        ([".", "--cell", "5"], "--cell must be"),
        ([".", "--out", "here.png"], "here.png exists\nhint: use --force to overwrite it, or another name"),
        (["here.png", "--out", "folder.png"], "folder.png is a folder, not a file\nhint: name a file inside it"),
        (["here.png", "--out", "loop.png", "--force"], "loop.png is a link to itself"),
        (["here.png", "--out", "/dev/null.png/x.png", "--force"], "there is no folder /dev/null.png"),
    ],
)
def test_sheet_that_cannot_be_made_is_refused(star: Star, folder: Path, arguments: list[str], words: str) -> None:
    if "here.png" in arguments:
        Image.new("RGB", (8, 8)).save(folder / "here.png")
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "folder.png").mkdir()
    result = star("sheet", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
