"""The same jobs through Ray Data, on this machine's CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from star_cli.batch.events import Event
from star_cli.batch.folder import BatchFolder
from star_cli.batch.selection import Policy
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
        summary = run_on_ray(plan, Policy(batch_size=3), "cpu", "float32", folder, events.append, lambda stop: None)
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
        run_on_ray(plan_of("x"), Policy(), "cpu", "float32", folder, lambda event: None, lambda stop: None)
    assert caught.value.hint == "pip install 'star-cli[ray]'"
