"""`star bench`: one JSON object or lines, an earlier measurement beside it, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from star_cli.asked import SAMPLING
from star_cli.evaluation import speed
from star_cli.evaluation.speed_cold import summarise
from star_cli.evaluation.speed_subject import Precision, Workload, load_subject
from star_cli.generation.options import SamplingOptions
from star_cli.images import read_recipe
from tests.cli.command import Star, Start
from tests.cli.test_bad_input import assert_refused
from tests.conftest import TINY_TRANSFORMER, write_tiny_folder

FEW_CLASSES = replace(
    TINY_TRANSFORMER, conditioning="class", classes=5, cross_attention=False, modulation="class", levels=4
)
USUAL = {
    "STAR_GUIDANCE": "0.5",
    "STAR_TOP_K": "3",
    "STAR_TOP_P": "0.5",
    "STAR_TEMPERATURE": "2",
    "STAR_SPEED": "fast",
    "STAR_RES": "64",
    "STAR_FORMAT": "jpeg",
}
"""What a user may have set."""


def test_process_measures_cold_and_warm_and_gives_one_object(start: Start, tiny_model_folder: Path) -> None:
    process = start(
        "bench", "--quick", "--cold", "--json", "--model", tiny_model_folder, "--res", "64", "--threads", "1"
    )
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, b"")
    (line,) = stdout.splitlines()
    told = json.loads(line)
    assert told["subject"]["name"] == "tiny"
    assert told["settings"]["res"] == 64
    assert told["machine"]["threads"] == 1
    assert [batch["images"] for batch in told["batches"]] == [1]
    # a process has to import and load what the warm pass already has
    assert told["cold"]["p50_s"] > told["batches"][0]["p50_s"]


def test_lines_name_their_table_and_an_earlier_measurement_is_set_beside(
    star: Star, folder: Path, tiny_model_folder: Path
) -> None:
    measure = ("bench", "--quick", "--model", tiny_model_folder, "--device", "cpu")
    first = star(*measure, "--json", "--dtype", "bfloat16")
    (folder / "before.json").write_text(first.stdout, encoding="utf-8")
    result = star(*measure, "--compare", "before.json", "--batch-sizes", "1,2,1")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    kinds = [row[0] for row in rows]
    assert list(dict.fromkeys(kinds)) == ["about", "pass", "ceiling", "part", "scale", "compared"]
    assert [row[1] for row in rows if row[0] == "pass"] == ["batch 1", "batch 2"]
    assert [row[1] for row in rows if row[0] == "scale"] == ["1x1", "2x2", "4x4"]
    compared = {row[1]: row[2] for row in rows if row[0] == "compared"}
    assert compared["batch 1"].endswith("x")
    assert compared["not the same: settings.dtype"] == "bfloat16 -> float32"


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["--shape", "star-300-d16"], "there is no shape 'star-300-d16'", "star-512-d30"),
        (["--shape", "star-256-d16", "--model", "x"], "--model and --shape are given", "give one of them"),
        (["--shape", "star-256-d16", "--cold"], "no weights on disk", "leave --cold out"),
        (["--shape", "star-256-d16", "--res", "512"], "draws 256 pixels, not 512", "leave --res out"),
        (["--model", "nothing"], "no model is called 'nothing'", "star models"),
        (["--batch-sizes", "1,none"], "--batch-sizes must be whole numbers of at least 1", "1,2,4"),
        (["--batch-sizes", "0"], "--batch-sizes must be whole numbers of at least 1", "1,2,4"),
        (["--repeat", "0"], "--repeat must be a whole number of at least 1, not 0", None),
        (["--res", "0"], "--res must be a whole number of at least 1, not 0", None),
        (["--shape", "star-256-d16", "--res", "-1"], "--res must be a whole number of at least 1, not -1", None),
        (["--cold", "--quantize", "int8", "--dtype", "float16"], "int8 goes with float32 and bfloat16", "leave out"),
        (["--threads", "-1"], "--threads must be a whole number of at least 1, not -1", None),
        (["--compare", "none.json"], "none.json: No such file or directory", "star bench --json > none.json"),
        (["--compare", "other.json"], "other.json is no measurement of `star bench`", "star bench --json"),
        (["--compare", "text.json"], "text.json is not JSON", "star bench --json"),
        (["--compare", "later.json"], "of format version 9, this star-cli compares 1", "star bench --json"),
        (["--compare", "part.json"], "part.json is damaged: it lacks settings, machine", "star bench --json"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    star: Star, folder: Path, arguments: list[str], words: str, hint: str | None
) -> None:
    (folder / "other.json").write_text("[1]", encoding="utf-8")
    (folder / "text.json").write_bytes(b"\xff\xfe")
    part = {"format": "star-bench", "format_version": 1, "subject": {}}
    (folder / "part.json").write_text(json.dumps(part), encoding="utf-8")
    (folder / "later.json").write_text('{"format": "star-bench", "format_version": 9}', encoding="utf-8")
    assert_refused(star("bench", *arguments, "--quick"), words, hint)


def test_resolution_that_the_model_does_not_draw_is_refused(star: Star, tiny_model_folder: Path) -> None:
    assert_refused(star("bench", "--quick", "--model", tiny_model_folder, "--res", "300"), "not 300", "use --res 64")


@pytest.mark.parametrize("kind", ["words", "classes", "stable"])
def test_cold_draws_what_warm_draws_whatever_the_users_defaults(
    star: Star,
    folder: Path,
    tiny_model_folder: Path,
    tiny_stable_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    models = {"words": tiny_model_folder, "stable": tiny_stable_folder}
    model = models.get(kind) or write_tiny_folder(tmp_path / "few", FEW_CLASSES, None, None)
    commands: list[list[str]] = []

    def record(arguments: list[str], *_: object) -> dict[str, object]:
        commands.append(arguments)
        return summarise([1.0])

    monkeypatch.setattr(speed, "measure_cold", record)
    smooth = {"STAR_SMOOTH": "1"} if kind != "stable" else {}  # weights with that head refuse to smooth
    for name, value in (USUAL | smooth).items():
        monkeypatch.setenv(name, value)
    result = star("bench", "--quick", "--cold", "--json", "--model", model)
    assert (result.exit_code, result.stderr) == (0, "")
    settings = json.loads(result.stdout)["settings"]
    assert [settings[name] for name in ("res", "speed", "guidance", "smooth")] == [64, "fast", 2.0, 0]
    (command,) = commands
    drawn = star(*command, "--out", "cold.png")
    assert (drawn.exit_code, drawn.stderr) == (0, "")
    recipe = read_recipe(folder / "cold.png")
    assert {name: recipe[name] for name in settings if name in recipe} == {
        name: value for name, value in settings.items() if name in recipe
    }
    assert set(SAMPLING) <= set(recipe) & set(settings)
    warm = Workload(load_subject(str(model), None, Precision(device="cpu")), 64, SamplingOptions()).jobs(1)
    assert [recipe.get("prompt", recipe.get("class"))] == [job.subject for job in warm]
