"""Plans and runs with the tiny model."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from star_cli.batch.events import Event, Summary
from star_cli.batch.folder import BatchFolder
from star_cli.batch.plan import Plan, read_plan
from star_cli.batch.runner import BatchRunner
from star_cli.batch.selection import Policy
from star_cli.batch.template import DEFAULT_TEMPLATE, NameTemplate
from star_cli.checkpoints.folder import ModelFolder, read_model_folder
from star_cli.pipeline import StarPipeline


def fuzz(usual: int) -> settings:
    """How many examples hypothesis tries; the environment variable FUZZ_EXAMPLES asks for more."""
    return settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", usual)))


PlanOf = Callable[..., Plan]
RunBatch = Callable[..., tuple[Summary, list[Event]]]


@pytest.fixture(scope="session")
def tiny_folder(tiny_model_folder: Path) -> ModelFolder:
    return read_model_folder(tiny_model_folder)


@pytest.fixture
def plan_of(tiny_folder: ModelFolder) -> PlanOf:
    """`plan_of("a red circle", seed=7)`; several lines of input are several prompts."""

    def make(text: str | bytes, kind: Any = "text", template: str = DEFAULT_TEMPLATE, **defaults: Any) -> Plan:
        data = text.encode() if isinstance(text, str) else text
        return read_plan(io.BytesIO(data), kind, tiny_folder, defaults, NameTemplate(template))

    return make


@pytest.fixture
def run_batch(tiny_pipeline: StarPipeline) -> RunBatch:
    """Runs a plan in a folder: `run_batch(plan, path, batch_size=3)`."""

    def run(plan: Plan, where: Path, **policy: Any) -> tuple[Summary, list[Event]]:
        events: list[Event] = []
        with BatchFolder(where) as folder:
            runner = BatchRunner(tiny_pipeline, plan, folder, Policy(**policy))
            summary = runner.run(events.append)
        return summary, [event for event in events if event.kind != "drawing"]

    return run


def images_in(folder: Path) -> dict[str, bytes]:
    """Every image below a folder, by its name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def leftovers(folder: Path) -> list[str]:
    """Files that are neither images nor journals."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if path.suffix not in (".png", ".jsonl")]
