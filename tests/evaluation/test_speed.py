"""The measurement: what it says, that its parts are the whole, and that it leaves the pipeline as it was."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import performance
from benchmarks.performance import render, scaled_authors_seconds
from star_cli.errors import ModelNotFoundError, OptionError
from star_cli.evaluation import speed, speed_subject
from star_cli.evaluation.speed import Bench, Effort, run_bench
from star_cli.evaluation.speed_floor import fastest_profile, workload_costs
from star_cli.evaluation.speed_machine import _fp8_rate, floor_seconds, threads_set
from star_cli.evaluation.speed_profile import PARTS, Clocks, clocks_around
from star_cli.evaluation.speed_report import compare, tables
from star_cli.evaluation.speed_subject import SHAPES, Precision, Subject, Workload, find_shape, load_subject
from star_cli.generation import sampler
from star_cli.models.drawing_cost import Cost
from star_cli.pipeline import StarPipeline
from tests.conftest import TINY_TRANSFORMER, TINY_VQVAE

CEILINGS = {"gemm": {"float32": 2.0, "bfloat16": 4.0}, "convolution": {"bfloat16": 1.0}, "copy": {"memory": 0.5}}


@pytest.fixture(scope="module")
def report(tiny_model_folder: Path) -> dict[str, Any]:
    steps: list[str] = []
    bench = Bench(
        model=str(tiny_model_folder),
        batch_sizes=(2, 1),
        precision=Precision(device="cpu", dtype="bfloat16"),
        sampling={"guidance": 1.5},
        effort=Effort.quick(),
    )
    measured = run_bench(bench, steps.append)
    assert steps == ["loading", "warm, batch 2", "warm, batch 1", "parts", "the machine's ceilings"]
    return measured


def test_report_has_the_keys_that_its_format_version_promises(report: dict[str, Any]) -> None:
    assert [report["format"], report["format_version"]] == ["star-bench", 1]
    assert set(report) == {
        *("format", "format_version", "subject", "settings", "machine", "versions", "cold", "loading_s"),
        *("batches", "ceilings", "profile"),
    }
    assert set(report["machine"]) == {"system", "cpu", "cores", "flags", "threads", "device", "device_name"}
    assert [batch["images"] for batch in report["batches"]] == [2, 1]
    assert set(report["batches"][0]) == {
        *("images", "p50_s", "p90_s", "min_s", "seconds", "images_per_s", "tokens_per_s"),
        *("peak_memory_bytes", "peak_device_bytes"),
    }
    row = {"ms", "flops", "bytes", "floor_ms", "floor_percent"}
    assert set(report["profile"]) == {"images", "total_s", "undisturbed_s", "floor_s", "parts", "scales"}
    assert all(set(part) == {"part", *row} for part in report["profile"]["parts"])
    assert all(set(scale) == {"side", "tokens", "parts_ms", *row} for scale in report["profile"]["scales"])
    assert report["settings"] | {"res": 32, "dtype": "bfloat16", "guidance": 1.5} == report["settings"]


def test_parts_add_up_to_the_pass_and_to_their_scales(report: dict[str, Any]) -> None:
    profile = report["profile"]
    assert sum(part["ms"] for part in profile["parts"]) == pytest.approx(1e3 * profile["total_s"])
    for scale in profile["scales"]:
        assert sum(scale["parts_ms"].values()) == pytest.approx(scale["ms"])
    flops = {part["part"]: part["flops"] for part in profile["parts"]}
    in_scales = sum(scale["flops"] for scale in profile["scales"])
    once = flops["text"] + flops["start"] + flops["decode"] + flops["quantizer"] // 2
    assert sum(flops.values()) == in_scales + once


def test_every_part_of_a_text_model_is_met_and_has_a_floor(report: dict[str, Any]) -> None:
    parts = {part["part"]: part for part in report["profile"]["parts"]}
    assert [part for part in PARTS if part in parts] == list(parts)
    assert set(parts) == set(PARTS) - {"stable"}
    assert all(part["ms"] > 0 for part in parts.values())
    assert all(part["floor_ms"] > 0 for name, part in parts.items() if name != "rest")
    assert parts["rest"]["floor_ms"] is None
    assert all(scale["floor_ms"] > 0 for scale in report["profile"]["scales"])


def test_the_machine_gave_every_rate(report: dict[str, Any]) -> None:
    rates = report["ceilings"]
    for dtype in ("float32", "bfloat16"):
        assert rates["gemm"][dtype] > 0
        assert rates["convolution"][dtype] > 0
    assert rates["copy"]["memory"] > 0


def test_floor_is_the_slower_of_computing_and_moving() -> None:
    moving = Cost({}, 10**9)
    assert floor_seconds(moving, CEILINGS, "bfloat16") == 2.0
    assert floor_seconds(Cost({"blocks": 12 * 10**9}, 10**9), CEILINGS, "bfloat16") == 3.0
    assert floor_seconds(Cost({"head": 12 * 10**9}, 10**9), CEILINGS, "bfloat16") == 6.0
    assert floor_seconds(Cost({"decoder": 12 * 10**9}, 10**9), CEILINGS, "bfloat16") == 3.0
    assert floor_seconds(Cost({"blocks": 12}, 10**9), CEILINGS, "bfloat16") == 2.0


def test_int8_hastens_the_layers_that_are_rounded_alone() -> None:
    ceilings = {**CEILINGS, "gemm": {**CEILINGS["gemm"], "int8": 8.0}}
    cost = Cost({"linears": 16 * 10**9, "blocks": 4 * 10**9}, 0)
    assert floor_seconds(cost, ceilings, "bfloat16") == 5.0
    assert floor_seconds(cost, ceilings, "bfloat16", "int8") == 3.0
    assert floor_seconds(cost, CEILINGS, "bfloat16", "int8") == 5.0  # no such product was measured


def test_fp8_is_multiplied_with_a_scale_for_each_row() -> None:
    rate = _fp8_rate(torch.device("cpu"), (32, 64, 48), repeats=1)
    assert rate is not None
    assert rate > 0


def test_int8_hastens_the_convolutions_that_are_rounded_alone() -> None:
    ceilings = {**CEILINGS, "convolution": {"bfloat16": 1.0, "int8": 8.0}, "gemm": {**CEILINGS["gemm"], "int8": 6.0}}
    cost = Cost({"convolutions": 16 * 10**9, "decoder": 4 * 10**9}, 0)
    assert floor_seconds(cost, ceilings, "bfloat16") == 5.0
    assert floor_seconds(cost, ceilings, "bfloat16", "int8") == 3.0
    assert floor_seconds(cost, CEILINGS, "bfloat16", "int8") == 5.0  # no such convolution was measured


def test_float16_has_the_floor_of_float32_where_it_was_not_measured() -> None:
    ceilings = {**CEILINGS, "convolution": {"float32": 3.0}}
    for cost in (Cost({"blocks": 10**9}, 0), Cost({"decoder": 10**9}, 0)):
        assert floor_seconds(cost, ceilings, "float16") == floor_seconds(cost, ceilings, "float32")


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("smooth", [0, 2])
def test_what_is_timed_is_what_is_counted(tiny_pipeline: StarPipeline, smooth: int, images: int) -> None:
    options = replace(tiny_pipeline.defaults, smooth=smooth)
    workload = Workload(Subject(tiny_pipeline, False, "encoder"), 32, options)
    times, costs = fastest_profile(workload, images, 1), workload_costs(workload, images)
    assert set(times.seconds) - {("rest", None)} == set(costs)
    assert (("quantizer", None) in costs) == (not smooth)  # what is smooth is no sum of tokens


def test_second_sum_of_f_hat_is_of_no_scale(tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(Subject(tiny_pipeline, False, "encoder"), 32, tiny_pipeline.defaults)
    quantizer = tiny_pipeline.vqvae.quantizer
    decode_tokens = quantizer.decode_tokens

    def slow(*given: Any) -> torch.Tensor:
        time.sleep(0.2)
        return decode_tokens(*given)

    monkeypatch.setattr(quantizer, "decode_tokens", slow)
    seconds = fastest_profile(workload, 1, 1).seconds
    assert seconds["quantizer", None] >= 0.2 > seconds["quantizer", 0]


def test_a_prompt_reads_a_few_rows_of_the_text_encoders_tables(tiny_pipeline: StarPipeline) -> None:
    workload = Workload(Subject(tiny_pipeline, False, "encoder"), 32, tiny_pipeline.defaults)
    assert tiny_pipeline.text_encoder is not None
    named = dict(tiny_pipeline.text_encoder.tower.named_parameters())
    tokens = named.pop("token_embedding.weight")
    read = workload_costs(workload, 1)["text", None].bytes
    assert 0 < read == 4 * sum(weight.numel() for weight in named.values()) < 4 * tokens.numel()


def test_clocks_leave_the_pipeline_as_it_was_and_the_picture_the_same(tiny_pipeline: StarPipeline) -> None:
    before, draws = dict(vars(tiny_pipeline.transformer.blocks[0])), sampler.draw_codes
    workload = Workload(Subject(tiny_pipeline, False, "encoder"), 32, tiny_pipeline.defaults)
    (plain,) = tiny_pipeline.draw_jobs(workload.jobs(1), res=32, options=workload.options)
    with clocks_around(tiny_pipeline, 3) as clocks:
        clocks.begin()
        (timed,) = tiny_pipeline.draw_jobs(workload.jobs(1), res=32, options=workload.options, on_scale=clocks.on_scale)
        assert clocks.end().total > 0
        assert sampler.draw_codes is not draws
    assert torch.equal(plain.pixels, timed.pixels)
    assert vars(tiny_pipeline.transformer.blocks[0]) == before
    assert sampler.draw_codes is draws
    assert "tell" not in vars(tiny_pipeline)


def test_images_that_are_drawn_one_after_the_other_share_their_scales() -> None:
    clocks = Clocks(torch.device("cpu"), scales=2)
    work, add = clocks.timed("head", lambda: None), clocks.timed("quantizer", lambda: None)
    sum_again = clocks.timed("quantizer", add, is_once=True)
    clocks.begin()
    for done in (1, 2, 3, 4):
        work()
        clocks.on_scale(done, 4)
        if done % 2 == 0:
            sum_again()
    places = set(clocks.end().seconds)
    assert places == {("head", 0), ("head", 1), ("quantizer", None), ("rest", None)}


def test_threads_are_set_inside_alone() -> None:
    before = torch.get_num_threads()
    with threads_set(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_comparison_tells_gains_and_what_is_not_the_same(report: dict[str, Any]) -> None:
    slower = {**report, "settings": {**report["settings"], "dtype": "float32"}, "cold": {"p50_s": 1.0}}
    slower["batches"] = [{**batch, "p50_s": 3 * batch["p50_s"]} for batch in report["batches"]]
    told = compare(slower, report)
    assert told["differences"] == {"settings.dtype": ["float32", "bfloat16"]}
    assert told["ratios"]["batch 1"] == pytest.approx(3)
    assert told["ratios"]["batch 2, head"] == pytest.approx(1)
    assert "cold" not in told["ratios"]  # one of the two has none
    compared = list(tables({**report, "compare": told}))[-1]
    assert ["batch 1", "3.00x"] in compared.rows
    assert ["not the same: settings.dtype", "float32 -> bfloat16"] in compared.rows


def test_page_shows_what_was_measured_and_the_authors_seconds_at_this_machines_rate(report: dict[str, Any]) -> None:
    rate = {**report["ceilings"], "gemm": {"bfloat16": 840.0}}
    random = {"name": "star-512-d30", "weights": "random"}
    page = render(
        {"own": report, "size": {**report, "subject": random, "ceilings": rate}},
    )
    (size,) = [line for line in page.splitlines() if line.startswith("| size |")]
    assert "| 33.0 |" in size  # 66 s at half this rate
    assert len([line for line in page.splitlines() if line.startswith("| own |")]) == len(report["batches"])
    assert page.count("| self attention |") == 2
    assert scaled_authors_seconds("star-256-d16", "bfloat16", 100.0) is None
    assert render({}) == "Nothing has been measured yet.\n"


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_what_their_names_say(name: str) -> None:
    family, resolution, depth = name.split("-")
    model = find_shape(name)
    assert model.resolution == int(resolution)
    assert model.transformer.depth == model.transformer.heads == int(depth[1:])
    assert model.transformer.width == 64 * int(depth[1:])
    assert (model.transformer.conditioning == "class") == (family == "var")


@pytest.mark.parametrize("name", ["", "star-512", "var-1024-d16", "star-300-d16", "star-256-d0", "star-256-d16 "])
def test_another_shape_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no shape") as error:
        find_shape(name)
    assert "star-512-d30" in str(error.value.hint)


@pytest.mark.parametrize("name", ["star-256-d16", "var-256-d16"])
def test_shape_with_random_weights_draws_in_its_dtype(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = find_shape(name)
    by_class = {"conditioning": "class", "cross_attention": False, "modulation": "class"}
    tiny = replace(TINY_TRANSFORMER, levels=10, text_width=1024, **(by_class if name.startswith("var") else {}))
    small = replace(shape, transformer=tiny, vqvae=TINY_VQVAE)
    monkeypatch.setattr(speed_subject, "find_shape", lambda asked: {name: small}[asked])
    subject = load_subject(None, name, Precision(device="cpu", dtype="bfloat16"))
    assert subject.is_random
    assert subject.text == ("none" if name.startswith("var") else "random features")
    weights = subject.pipeline.transformer
    assert weights.blocks[0].feed_forward.enter.weight.dtype == torch.bfloat16
    assert weights.head.weight.dtype == torch.float32
    assert weights.head.weight.std() > 0
    workload = Workload(subject, small.resolution, subject.pipeline.defaults)
    one, other = subject.pipeline.draw_jobs(workload.jobs(2), res=workload.res, options=workload.options)
    assert not torch.equal(one.pixels, other.pixels)
    assert len(one.pixels.unique()) > 16  # a picture, not a number that overflowed


def test_resolution_of_a_shape_is_its_own() -> None:
    with pytest.raises(OptionError, match="draws 256 pixels, not 512"):
        run_bench(Bench(shape="star-256-d16", res=512, effort=Effort.quick()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"res": 0}, "draws 32 or 64 pixels, not 0"),
        ({"precision": Precision(device="cpu", dtype="float16", quantize="int8")}, "int8 goes with float32"),
        ({"sampling": {"stable": True}}, "no head for stable sampling"),
    ],
)
def test_what_the_model_cannot_do_is_found_before_any_work(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(speed, "measure_cold", lambda *_: steps.append("cold"))
    with pytest.raises(OptionError, match=words):
        run_bench(Bench(model=str(tiny_model_folder), **changes), steps.append)
    assert steps == []


def test_measurements_take_flags_of_star_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_rest: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="{}")

    monkeypatch.setattr(subprocess, "run", run)
    flags = ["measure", str(tmp_path), "--only", "^star-512-d16-bfloat16$", "--", "--repeat", "2"]
    monkeypatch.setattr("sys.argv", ["performance.py", *flags])
    assert performance.main() == 0
    (command,) = commands
    assert command[-2:] == ["--repeat", "2"]
    assert (tmp_path / "star-512-d16-bfloat16.json").read_text() == "{}"


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Performance\n")
    monkeypatch.setattr("sys.argv", ["performance.py", "render", str(tmp_path), "--page", str(page)])
    with pytest.raises(SystemExit, match="no place for the tables"):
        performance.main()
    assert page.read_text() == "# Performance\n"
