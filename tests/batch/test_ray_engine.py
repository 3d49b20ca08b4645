"""The same jobs through Ray Data, on this machine's CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from star_cli.batch.events import Event, Summary
from star_cli.batch.folder import BatchFolder
from star_cli.batch.selection import Policy
from star_cli.batch.writers import Todo
from star_cli.errors import OptionError
from tests.batch.conftest import PlanOf, RunBatch, images_in, leftovers


@pytest.fixture
def local_ray() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    with warnings.catch_warnings(action="ignore"):
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_draws_the_same_images(tmp_path: Path, plan_of: PlanOf, run_batch: RunBatch) -> None:
    from star_cli.batch.ray_engine import run_on_ray

    plan = plan_of("a\nb\nc\nd\ne\n", num=2)
    events: list[Event] = []
    with BatchFolder(tmp_path / "ray") as folder:
        summary = run_on_ray(
            plan, Policy(batch_size=3), "cpu", "float32", None, folder, events.append, lambda stop: None
        )
    assert (summary.done, summary.failed) == (10, 0)
    assert [event.job.index for event in events if event.kind == "done" and event.job] == list(range(1, 11))
    run_batch(plan, tmp_path / "here")
    assert images_in(tmp_path / "ray") == images_in(tmp_path / "here")
    assert leftovers(tmp_path) == []
    again, _ = run_batch(plan, tmp_path / "ray")
    assert (again.done, again.kept) == (0, 10)


def test_without_ray_the_extra_is_named(tmp_path: Path, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from star_cli.batch.ray_engine import run_on_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with BatchFolder(tmp_path) as folder, pytest.raises(OptionError, match="--engine ray needs Ray") as caught:
        run_on_ray(plan_of("x"), Policy(), "cpu", "float32", None, folder, lambda event: None, lambda stop: None)
    assert caught.value.hint == "pip install 'star-cli[ray]'"


def test_failures_of_earlier_runs_do_not_count_as_too_many(
    tmp_path: Path, plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    from star_cli.batch import ray_engine

    bad = {"b"}

    def draw(ray: object, plan: object, policy: object, group: list[Todo], *_: object) -> Iterator[Any]:
        for todo in group:
            error = "boom" if todo.job.row.subject in bad else ""
            yield todo, {"error": error, "data": b"a picture", "seconds": 0.0}

    monkeypatch.setattr(ray_engine, "_ray", lambda: SimpleNamespace(exceptions=SimpleNamespace(RayError=RuntimeError)))
    monkeypatch.setattr(ray_engine, "_draw_on_ray", draw)

    def run(prompts: str, most: int | None) -> Summary:
        with BatchFolder(tmp_path) as folder:
            policy = Policy(max_failures=most)
            plan = plan_of(prompts)
            return ray_engine.run_on_ray(plan, policy, "cpu", "float32", None, folder, lambda _: None, lambda _: None)

    assert run("b\n", None).failed == 1
    again = run("b\na\nc\nd\n", 1)
    assert (again.done, again.failed, again.gave_up) == (3, 1, False)
    bad |= {"e"}
    worse = run("e\nf\ng\n", 1)
    assert (worse.failed, worse.gave_up, worse.done) == (1, True, 0)
