"""Several processes as one: what they tell, and when they are told to stop."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from star_cli.batch.events import Event, Summary
from star_cli.batch.selection import Policy
from star_cli.batch.workers import _Gathered
from tests.batch.conftest import PlanOf


@pytest.mark.parametrize(("kind", "stops"), [("failed", 1), ("failed before", 0), ("done", 0)])
def test_failures_of_all_processes_count_together(plan_of: PlanOf, kind: Any, stops: int) -> None:
    """Two processes with a failure each, when two are too many; those of an earlier run do not count."""
    jobs = list(plan_of("a\nb\nc\n").jobs())
    told: list[Event] = []
    calls: list[None] = []
    gathered = _Gathered(Policy(max_failures=2), told.append, Summary(3), lambda: calls.append(None))
    events: queue.Queue[Event] = queue.Queue()
    for job in jobs:
        events.put(Event(kind, job))
        gathered.take(events)
    assert [event.job for event in told] == jobs
    assert (len(calls), gathered.summary.gave_up) == (stops, bool(stops))
