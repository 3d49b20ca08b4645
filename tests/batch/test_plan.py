"""What a batch is to draw: rows checked whole, images named and told apart."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from star_cli.batch.plan import Plan, job_hash, read_plan
from star_cli.batch.template import NameTemplate
from star_cli.checkpoints.folder import read_model_folder
from star_cli.errors import BatchInputError, OptionError
from star_cli.generation.options import LARGEST_SEED
from star_cli.pipeline import StarPipeline
from tests.batch.conftest import PlanOf


def test_each_row_gives_its_images_with_rising_seeds(plan_of: PlanOf) -> None:
    plan = plan_of("a red circle\na cat\n", seed=5, num=2)
    jobs = list(plan.jobs())
    assert len(plan) == len(jobs) == 4
    assert [(job.index, job.row.line, job.row.subject, job.seed, job.file) for job in jobs] == [
        (1, 1, "a red circle", 5, "00001-a-red-circle-5.png"),
        (2, 1, "a red circle", 6, "00002-a-red-circle-6.png"),
        (3, 2, "a cat", 5, "00003-a-cat-5.png"),
        (4, 2, "a cat", 6, "00004-a-cat-6.png"),
    ]
    assert jobs == list(plan.jobs())


def test_more_images_than_memory_has_names_for_are_refused(plan_of: PlanOf) -> None:
    with pytest.raises(BatchInputError, match=f"at most 1,000,000,000 images, not {2 * LARGEST_SEED:,}"):
        plan_of("a\nb\n", num=LARGEST_SEED)


def test_rows_change_what_the_flags_say(plan_of: PlanOf) -> None:
    text = "prompt,seed,res,guidance,negative,num,out\nx,,,,,,\ny,9,64,1.5,blue,2,deep/y\n"
    first, second, third = plan_of(text, "csv", seed=3, res=32, top_k=5).jobs()
    assert (first.seed, first.row.setting.res, first.row.setting.sampling.guidance) == (3, 32, 2.0)
    assert (second.seed, second.row.setting.res, second.row.negative) == (9, 64, "blue")
    assert second.row.setting.sampling.guidance == 1.5
    assert {job.row.setting.sampling.top_k for job in (first, second)} == {5}
    assert (second.file, third.file) == ("deep/y-9.png", "deep/y-10.png")


def test_hash_of_a_job_is_that_of_its_pictures_recipe(plan_of: PlanOf, tiny_pipeline: StarPipeline) -> None:
    (job,) = plan_of('{"prompt": "x", "negative": "blue", "guidance": 3, "seed": 4, "res": 64}', "jsonl").jobs()
    setting = job.row.setting
    (image,) = tiny_pipeline("x", negative="blue", seed=4, res=64, options=setting.sampling)
    assert job_hash(image.recipe, "png") == job.hash
    assert job_hash({**image.recipe, "device": "cuda", "dtype": "bfloat16", "model": "other name"}, "png") == job.hash
    assert job_hash({**image.recipe, "model_hash": "0"}, "png") != job.hash
    assert job_hash(image.recipe, "webp") != job.hash


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"negative": "y"},
        {"res": 64},
        {"top_k": 3},
        {"temperature": 0.5},
        {"guidance": 1.0},
        {"speed": "fast"},
    ],
)
def test_every_option_tells_jobs_apart(plan_of: PlanOf, change: dict[str, Any]) -> None:
    (one,), (other,) = plan_of("x").jobs(), plan_of("x", **change).jobs()
    assert one.hash != other.hash


def test_pictures_of_before_the_levels_of_speed_keep_their_identity(tiny_pipeline: StarPipeline) -> None:
    (image,) = tiny_pipeline("x")
    before = {name: value for name, value in image.recipe.items() if name != "speed"}
    assert job_hash(before, "png") == job_hash(image.recipe, "png")


def test_the_same_row_twice_is_two_jobs_and_a_new_line_changes_no_other(plan_of: PlanOf) -> None:
    before, twin = plan_of("x\nx\n").jobs()
    assert before.hash != twin.hash
    assert [job.hash for job in plan_of("new\nx\nother\nx\n").jobs()][1::2] == [before.hash, twin.hash]


def test_names_that_meet_are_numbered(plan_of: PlanOf) -> None:
    names = [job.file for job in plan_of("x\nX!\nx-2\nx\n", template="{slug}").jobs()]
    assert names == ["x.png", "x-2.png", "x-2-2.png", "x-3.png"]


def test_all_bad_lines_are_listed(plan_of: PlanOf) -> None:
    lines = [
        '{"prompt": "x"}',
        '{"prompt": " "}',
        '{"seed": 1}',
        '{"prompt": "x", "res": 300}',
        '{"prompt": "x", "num": 0}',
        '{"prompt": "x", "out": "../y.png"}',
        '{"prompt": "x", "top_p": 2}',
        '{"prompt": "x", "stable": true}',
        '{"prompt": "x", "class": 3}',
        '{"class": 3}',
        '{"prompt": "\\ud800"}',
        f'{{"prompt": "x", "seed": {LARGEST_SEED}, "num": 2}}',
        '{"prompt": "x", "format": "gif"}',
        '{"prompt": "x", "speed": "quick"}',
        '{"prompt": "x", "format": "png", "out": "a.jpg"}',
    ]
    with pytest.raises(BatchInputError) as caught:
        plan_of("\n".join(lines), "jsonl")
    assert str(caught.value) == "14 lines of the input cannot be drawn"
    told = dict(caught.value.problems)
    assert list(told) == list(range(2, 16))
    assert told[2] == "the prompt is empty"
    assert told[4] == "model tiny draws 32 or 64 pixels, not 300"
    assert told[6] == "out ../y.png leads out of the folder"
    assert told[10] == "model tiny draws words, not a class"
    assert told[14] == "speed must be one of reference, exact, fast, turbo, not quick"
    assert told[13] == "format must be png, webp, jpeg, not gif"


@pytest.mark.parametrize("text", ["", "\n\n", "# only words\n", "\ufeff"])
def test_input_without_a_prompt_is_refused(plan_of: PlanOf, text: str) -> None:
    with pytest.raises(BatchInputError, match="there is nothing to draw"):
        plan_of(text)


def test_flags_that_cannot_be_used_are_no_lines_fault(plan_of: PlanOf) -> None:
    with pytest.raises(OptionError, match="pixels, not 300") as caught:
        plan_of("x\ny\n", res=300)
    assert not isinstance(caught.value, BatchInputError)


def test_bytes_that_are_not_utf8_are_named_with_their_line(plan_of: PlanOf) -> None:
    with pytest.raises(BatchInputError) as caught:
        plan_of(b"fine\n\xff\xfe red\n")
    ((line, message),) = caught.value.problems
    assert (line, message[:40]) == (2, "the prompt holds bytes that are not UTF-")


def test_lines_of_a_class_model_are_classes(tiny_class_folder: Path) -> None:
    folder = read_model_folder(tiny_class_folder)
    plan = read_plan([b"207\n", b"golden retriever\n"], "text", folder, {}, NameTemplate())
    first, second = plan.jobs()
    assert (first.row.subject, second.row.subject) == (207, 207)
    assert first.file == "00001-class-207-0.png"
    assert first.hash != second.hash  # the second of two equal rows


def test_many_lines_take_little_memory(plan_of: PlanOf) -> None:
    text = "".join(f"a red circle to the left of a blue square number {number}\n" for number in range(10_000)).encode()
    tracemalloc.start()
    plan: Plan = plan_of(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan) == 10_000
    assert peak - len(text) < 4e6


def test_plans_are_made_without_torch(tiny_model_folder: Path) -> None:
    code = f"""
import io, sys
from star_cli.batch.plan import read_plan
from star_cli.batch.folder import BatchFolder
from star_cli.batch.template import NameTemplate
from star_cli.checkpoints.folder import read_model_folder
plan = read_plan(io.BytesIO(b"x"), "text", read_model_folder({str(tiny_model_folder)!r}), {{}}, NameTemplate())
list(plan.jobs())
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
