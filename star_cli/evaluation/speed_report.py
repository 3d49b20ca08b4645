"""A measurement in rows for people, and against an earlier one. Plain data in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_cli.errors import OptionError

FORMAT, FORMAT_VERSION = "star-bench", 1
_UNKNOWN = "-"
_COMPARED = ("subject", "settings", "machine", "versions", "cold", "batches", "profile")
"""Keys of a report that `compare` reads."""


@dataclass(frozen=True)
class Table:
    """One of a report's tables."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def read_report(path: Path) -> dict[str, Any]:
    """What `star bench --json` wrote.

    Raises:
        OptionError: the file cannot be read, or is something else.
    """
    hint = f"write one with `star bench --json > {path.name}`"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror or error}", hint) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not JSON", hint) from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise OptionError(f"{path} is no measurement of `star bench`", hint)
    if report.get("format_version") != FORMAT_VERSION:
        raise OptionError(
            f"{path} is of format version {report.get('format_version')}, this star-cli compares {FORMAT_VERSION}", hint
        )
    if missing := [key for key in _COMPARED if key not in report]:
        raise OptionError(f"{path} is damaged: it lacks {', '.join(missing)}", hint)
    return report


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """How much less time the later measurement took: ratios above 1 are gains.

    Returns:
        "differences": settings and facts of the machine that are not the same in both, each with both values; "ratios":
        of the whole pass at each batch size that both have, of the cold start, and of each part and scale of both.
    """
    ratios: dict[str, float] = {}
    earlier = dict(_times(before))
    for name, ms in _times(after):
        if name in earlier and ms > 0:
            ratios[name] = earlier[name] / ms
    return {"differences": dict(_differences(before, after)), "ratios": ratios}


def _times(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Everything that took time, by name."""
    if report["cold"] is not None:
        yield "cold", report["cold"]["p50_s"]
    for batch in report["batches"]:
        yield f"batch {batch['images']}", batch["p50_s"]
    profile = report["profile"]
    prefix = "" if profile["images"] == 1 else f"batch {profile['images']}, "  # only like is compared with like
    for row in profile["parts"]:
        yield prefix + row["part"], row["ms"]
    for row in profile["scales"]:
        yield f"{prefix}{row['side']}x{row['side']}", row["ms"]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    for group in ("subject", "settings", "machine", "versions"):
        old, new = before[group], after[group]
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                yield f"{group}.{name}", [old.get(name), new.get(name)]


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """All that a report says."""
    yield _facts(report)
    yield _passes(report)
    yield _ceilings(report)
    profile = report["profile"]
    heads = ("ms", "share", "GFLOP", "MB", "floor ms", "of floor")
    total = 1e3 * profile["total_s"]
    yield Table("part", ("part", *heads), [[row["part"], *_cells(row, total)] for row in profile["parts"]])
    yield Table(
        "scale",
        ("scale", "tokens", *heads),
        [[f"{row['side']}x{row['side']}", str(row["tokens"]), *_cells(row, total)] for row in profile["scales"]],
    )
    if "compare" in report:
        yield _comparison(report["compare"])


def _facts(report: Mapping[str, Any]) -> Table:
    subject, settings, machine = report["subject"], report["settings"], report["machine"]
    profile = report["profile"]
    weights = f"{(subject['transformer_parameters'] + subject['vqvae_parameters']) / 1e6:.1f} M parameters"
    rows = [
        ["model", f"{subject['name']}, {subject['weights']} weights, {weights}"],
        ["text", subject["text"]],
        ["resolution", f"{settings['res']} px"],
        ["options", ", ".join(f"{name} {value}" for name, value in settings.items() if name != "res")],
        ["machine", f"{machine['device_name'] or machine['cpu']}, {machine['cores']} cores, {machine['system']}"],
        ["flags", " ".join(machine["flags"]) or _UNKNOWN],
        ["threads", str(machine["threads"])],
        ["versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())],
        ["loading", f"{report['loading_s']:.2f} s"],
        ["profiled pass", f"{profile['total_s']:.3f} s, {profile['undisturbed_s']:.3f} s without clocks"],
        ["floor", f"{profile['floor_s']:.3f} s, {profile['floor_s'] / profile['undisturbed_s']:.0%} reached"],
    ]
    return Table("about", ("about", "what"), rows)


def _passes(report: Mapping[str, Any]) -> Table:
    rows = [
        [
            f"batch {batch['images']}",
            *_seconds(batch),
            f"{batch['images_per_s']:.3f}",
            f"{batch['tokens_per_s']:.0f}",
            _megabytes(batch["peak_memory_bytes"]),
            _megabytes(batch["peak_device_bytes"]),
        ]
        for batch in report["batches"]
    ]
    if report["cold"] is not None:
        rows.insert(0, ["cold", *_seconds(report["cold"]), f"{1 / report['cold']['p50_s']:.3f}", *3 * [_UNKNOWN]])
    heads = ("pass", "p50 s", "p90 s", "least s", "images/s", "tokens/s", "peak MB", "peak GPU MB")
    return Table("pass", heads, rows)


def _ceilings(report: Mapping[str, Any]) -> Table:
    units = {"gemm": "GFLOP/s", "convolution": "GFLOP/s", "copy": "GB/s"}
    rows = [
        [kind, name, f"{rate:.1f}", units[kind]]
        for kind, rates in report["ceilings"].items()
        for name, rate in rates.items()
    ]
    return Table("ceiling", ("ceiling", "of", "rate", "unit"), rows)


def _comparison(comparison: Mapping[str, Any]) -> Table:
    rows = [[name, f"{ratio:.2f}x"] for name, ratio in comparison["ratios"].items()]
    rows += [[f"not the same: {name}", f"{old} -> {new}"] for name, (old, new) in comparison["differences"].items()]
    return Table("compared", ("compared", "faster"), rows)


def _seconds(summary: Mapping[str, Any]) -> list[str]:
    return [f"{summary[name]:.3f}" for name in ("p50_s", "p90_s", "min_s")]


def _cells(row: Mapping[str, Any], total_ms: float) -> list[str]:
    return [
        f"{row['ms']:.2f}",
        f"{row['ms'] / total_ms:.1%}",
        f"{row['flops'] / 1e9:.2f}",
        f"{row['bytes'] / 1e6:.1f}",
        _UNKNOWN if row["floor_ms"] is None else f"{row['floor_ms']:.2f}",
        _UNKNOWN if row["floor_percent"] is None else f"{row['floor_percent']:.0f}%",
    ]


def _megabytes(size_bytes: int | None) -> str:
    return _UNKNOWN if size_bytes is None else f"{size_bytes / 1e6:.0f}"
