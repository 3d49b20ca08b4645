"""All measurements that docs/performance.md shows, and its tables made of them.

    python -m benchmarks.performance measure FOLDER            # on a CPU
    python -m benchmarks.performance measure FOLDER --gpu      # on a GPU
    python -m benchmarks.performance render FOLDER             # Markdown on standard output
    python -m benchmarks.performance render FOLDER --page docs/performance.md

Each measurement is a `star bench` of its own whose JSON goes to the folder; one that is there is not measured again.
Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from star_cli.hardware import GRAPHS_SWITCH
from star_cli.images import write_whole

CPU_SHAPES = ("star-256-d16", "star-512-d16", "star-512-d30", "var-256-d16")
SHIPPED = {"star-icons": "1", "star-shapes": "1,2,4,8"}
"""Models, and the sizes of their passes: smooth pictures are drawn one at a time."""
GPU_SHAPES = ("star-256-d16", "star-512-d16", "star-512-d30", "star-1024-d30")
GRAPHS = {"graphs": "1", "compiled": "compiled"}
"""Values of the variable that asks for graphs, by the same names."""
LEVELS: Mapping[str, Sequence[str]] = {
    "": (),
    **{level: ("--speed", level) for level in ("reference", "fast", "turbo")},
    "int8": ("--quantize", "int8"),
    "turbo-int8": ("--speed", "turbo", "--quantize", "int8"),
    "fp8": ("--quantize", "fp8"),
    **dict.fromkeys(GRAPHS, ()),
}
"""Flags of each level of speed, the usual one first, by what its files are called; those of graphs are a variable's."""


class Authors(NamedTuple):
    """Seconds of the authors' code: one picture, guidance, whole call; 2 AVX-512 cores with avx512_bf16, torch 2.15."""

    float32: float
    bfloat16: float | None
    """Under autocast."""


AUTHORS = {
    "var-256-d16": Authors(7.5, 5.4),
    "star-256-d16": Authors(7.9, None),
    "star-512-d16": Authors(26.9, 20.0),
    "star-512-d30": Authors(109.0, 66.0),
}
AUTHORS_GFLOPS = {"float32": 200.0, "bfloat16": 420.0}
"""What matrix products reached on the authors' machine of those seconds."""
H100_FLOORS_MS = {"star-256-d16": 2.5, "star-512-d16": 6.2, "star-512-d30": 27.0, "star-1024-d30": 122.0}
"""At 800 TFLOP/s and 3 TB/s, from the operations and bytes alone."""
_BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- /figures -->)", re.DOTALL)


def measurements(gpu: bool) -> Iterator[tuple[str, list[str]]]:
    """Name of each file, and the flags of `star bench` that fill it."""
    for level, flags in LEVELS.items():
        for dtype in ("float32", "bfloat16"):
            if not _is_measured(level, dtype, gpu):
                continue
            named = "-".join(filter(None, (dtype, level)))
            for model, sizes in SHIPPED.items():
                for res in ("256", "512"):
                    of_model = ["--model", model, "--res", res, "--batch-sizes", sizes]
                    yield f"{model}-{res}-{named}", [*of_model, "--dtype", dtype, *flags]
            for shape in GPU_SHAPES if gpu else CPU_SHAPES:
                repeat = "10" if gpu else "3"
                yield f"{shape}-{named}", ["--shape", shape, "--dtype", dtype, "--repeat", repeat, *flags]


def _is_measured(level: str, dtype: str, gpu: bool) -> bool:
    return (gpu or level not in (*GRAPHS, "fp8")) and not (level == "fp8" and dtype == "float32")


def measure(folder: Path, gpu: bool, more: Sequence[str], only: str | None) -> int:
    """Run what is missing; the number of those that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, flags in measurements(gpu):
        file = folder / f"{name}.json"
        if file.exists() or not re.search(only or "", name):
            continue
        print(f"measuring {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "star_cli", "bench", "--json", *flags, *more]
        command += ["--device", "cuda"] if gpu else []
        switch = {GRAPHS_SWITCH: GRAPHS.get(name.rpartition("-")[2], "0")}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | switch)
        if done.returncode:
            failed += 1
        else:
            write_whole(file, done.stdout.encode())  # half a file would count as measured
    return failed


def render(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page's tables, of whatever was measured.

    Args:
        reports: by the names of `measurements`.
    """
    if not reports:
        return "Nothing has been measured yet.\n"
    parts = [_machine(reports), _whole(reports), _shipped(reports)]
    parts += [_parts(name, report) for name, report in sorted(reports.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Every measurement in a folder, by its file's name."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}


def _machine(reports: Mapping[str, Mapping[str, Any]]) -> str:
    report = next(iter(reports.values()))
    machine, versions = report["machine"], report["versions"]
    name = machine["device_name"] or machine["cpu"]
    flags = " ".join(machine["flags"])
    told = f"{name}, {machine['cores']} cores, {machine['threads']} threads ({flags}); "
    return told + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def _whole(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Published sizes: seconds a picture, the floor, and the authors' seconds at this machine's rate."""
    rows = []
    for name, report in sorted(reports.items()):
        shape, dtype = report["subject"]["name"], report["settings"]["dtype"]
        if report["subject"]["weights"] != "random":
            continue
        batch, profile, rate = report["batches"][0], report["profile"], report["ceilings"]["gemm"].get(dtype)
        theirs = scaled_authors_seconds(shape, dtype, rate) if report["machine"]["device"] == "cpu" else None
        rows.append(
            [
                name,
                f"{batch['p50_s']:.3f}",
                f"{batch['min_s']:.3f}",
                f"{profile['floor_s']:.3f}",
                f"{profile['floor_s'] / batch['p50_s']:.0%}",
                "-" if theirs is None else f"{theirs:.1f}",
                "-" if theirs is None else f"{theirs / batch['p50_s']:.1f}x",
                "-" if shape not in H100_FLOORS_MS else f"{H100_FLOORS_MS[shape]:g}",
            ]
        )
    heads = ["measurement", "p50, s", "least, s", "floor, s", "reached", "authors, s", "faster", "H100 floor, ms"]
    return _table(heads, rows)


def scaled_authors_seconds(shape: str, dtype: str, rate: float | None) -> float | None:
    """What the authors' code would take where matrix products reach `rate` GFLOP/s; None where it was not timed."""
    theirs = getattr(AUTHORS.get(shape), dtype, None)
    return None if theirs is None or rate is None else theirs * AUTHORS_GFLOPS[dtype] / rate


def _shipped(reports: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, report in sorted(reports.items()):
        if report["subject"]["weights"] == "random":
            continue
        cold = "-" if report["cold"] is None else f"{report['cold']['p50_s']:.2f}"
        for batch in report["batches"]:
            memory = batch["peak_device_bytes"] or batch["peak_memory_bytes"]
            told = "-" if memory is None else f"{memory / 1e6:.0f}"
            seconds = [f"{batch[key]:.3f}" for key in ("p50_s", "p90_s")]
            rows.append([name, str(batch["images"]), *seconds, f"{batch['images_per_s']:.2f}", told, cold])
    heads = ["measurement", "batch", "p50, s", "p90, s", "images/s", "peak, MB", "cold, s"]
    return _table(heads, rows)


def _parts(name: str, report: Mapping[str, Any]) -> str:
    rows = [
        [
            row["part"].replace("_", " "),
            f"{row['ms']:.1f}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['bytes'] / 1e6:.0f}",
            "-" if row["floor_ms"] is None else f"{row['floor_ms']:.1f}",
            "-" if row["floor_percent"] is None else f"{row['floor_percent']:.0f} %",
        ]
        for row in report["profile"]["parts"]
    ]
    table = _table(["part", "ms", "GFLOP", "MB", "floor, ms", "reached"], rows)
    return f"{name}:\n\n{table}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("measure", "render"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gpu", action="store_true", help="measure on CUDA")
    parser.add_argument("--only", metavar="REGEX", help="measure those whose name has this in it")
    parser.add_argument("--page", type=Path, help="write the tables into this page, between its marks")
    parser.add_argument("more", nargs="*", help="flags for every `star bench`, after --")
    options = parser.parse_intermixed_args()  # what follows -- may stand behind options
    if options.work == "measure":
        return 1 if measure(options.folder, options.gpu, options.more, options.only) else 0
    figures = render(read_folder(options.folder))
    if options.page is None:
        print(figures, end="")
    else:
        page = options.page.read_text(encoding="utf-8")
        if not _BLOCK.search(page):
            sys.exit(f"{options.page} has no place for the tables: <!-- figures --> and <!-- /figures -->")
        options.page.write_text(_BLOCK.sub(lambda block: f"{block[1]}\n{figures}\n{block[2]}", page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
