"""A table at the end of the run: how far each case is from the published models.

The numbers travel in the tests' reports, for the tests may have run in other processes.
"""

from __future__ import annotations

import pytest

from tests.reference.golden import TOLERANCES, Kind

PROPERTY = "deviations"
"""The property of a test that holds its deviations: case, kind of quantity, number."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    deviations = _largest(terminalreporter)
    if not deviations:
        return
    kinds = [kind for kind in TOLERANCES if any(kind in of_case for of_case in deviations.values())]
    widths = [max(len(kind), len("0.0e-00")) + 2 for kind in kinds]
    first = max(len(name) for name in deviations)

    def row(name: str, cells: list[str]) -> str:
        return f"{name:{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))

    terminalreporter.section("largest deviation from the published models")
    terminalreporter.write_line(row("", list(kinds)))
    terminalreporter.write_line(row("tolerance", [_tolerance(*TOLERANCES[kind]) for kind in kinds]))
    for name, of_case in sorted(deviations.items()):
        terminalreporter.write_line(row(name, [_deviation(kind, of_case.get(kind)) for kind in kinds]))
    if any(TOLERANCES[kind][1] for kind in kinds):
        terminalreporter.write_line("* and, relative to the published value, 1e-04")


def _largest(terminalreporter: pytest.TerminalReporter) -> dict[str, dict[Kind, float]]:
    largest: dict[str, dict[Kind, float]] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        for name, of_test in dict(getattr(report, "user_properties", ())).get(PROPERTY, {}).items():
            of_case = largest.setdefault(name, {})
            for kind, deviation in of_test.items():
                of_case[kind] = max(of_case.get(kind, 0.0), deviation)
    return largest


def _tolerance(absolute: float, relative: float) -> str:
    return "equal" if not absolute else f"{absolute:.0e}{'*' if relative else ''}"


def _deviation(kind: Kind, deviation: float | None) -> str:
    if deviation is None:
        return "."
    return "equal" if not any(TOLERANCES[kind]) else f"{deviation:.1e}" if deviation else "0"
