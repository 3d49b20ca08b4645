"""Memory that really runs out, in processes of their own: one line says when, one what to change."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from star_cli.errors import TrainingError
from star_cli.training.loop import train_stage
from tests.training.tiny_stages import LOOP, Line, Numbers

TINY = Path(__file__).parent / "tiny.toml"
LIMIT = 3 * 2**30
LARGE = 4096
"""Pixels of a picture whose first activations do not fit in the limit."""


class TooLarge(Numbers):
    """Batches that no machine has memory for."""

    def batch(self, step: int) -> Any:
        return torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_too_large_for_any_process_are_told(tmp_path: Path, workers: int) -> None:
    stage = Line()
    stage.source = TooLarge()
    with pytest.raises(TrainingError, match="out of memory while batches were made") as caught:
        train_stage(stage, replace(LOOP, workers=workers), tmp_path)
    assert "batch_size" in (caught.value.hint or "")


def test_a_preview_too_large_is_told(tmp_path: Path) -> None:
    stage = Line()
    stage.preview = lambda path: torch.empty(2**50, dtype=torch.uint8)  # type: ignore[assignment, method-assign]
    with pytest.raises(TrainingError, match="out of memory while a preview was drawn") as caught:
        train_stage(stage, replace(LOOP, preview_every=2), tmp_path)
    assert "preview_every" in (caught.value.hint or "")


# -- whole commands ---------------------------------------------------------------------------------------------------


def too_wide(folder: Path, model: Path) -> list[str]:
    """A model that cannot be built."""
    return ["train", "vqvae", "--recipe", str(TINY), "--set", "vqvae.model.channels=65536"]


def too_many_activations(folder: Path, model: Path) -> list[str]:
    """A model that can be built, and pictures that can be read, but not both in a step."""
    portions = [f"{stage}.portions.{number}.resolution={LARGE}" for stage in ("star", "finetune") for number in (0, 1)]
    changes = [f"resolutions={{ {LARGE} = [1, 2, {LARGE // 8}] }}", f"default_resolution={LARGE}", *portions]
    changes += ["vqvae.model.channels=256", "vqvae.stage.plain_share=0", "vqvae.stage.crop_share=0"]
    changes += ["vqvae.stage.batch_size=1"]
    sets = [word for change in changes for word in ("--set", change)]
    return ["train", "vqvae", "--recipe", str(TINY), "--data", str(folder / "pictures"), *sets]


def too_large_pictures(folder: Path, model: Path) -> list[str]:
    """Batches that cannot be made: a picture takes 12 GB."""
    target = ["finetune", "--from", "32", "--to", "32768", "--model", str(model), "--out", str(folder / "made")]
    return [*target, "--data", str(folder / "pictures"), "--steps", "2"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize(
    ("command", "said", "hint"),
    [
        (too_wide, "out of memory while stage vqvae was prepared", "make the model smaller"),
        pytest.param(
            too_many_activations,
            "out of memory on cpu in step 1: it needs about",
            "train at a lower resolution",
            marks=pytest.mark.slow,
        ),
        (too_large_pictures, "out of memory while batches were made", "lower batch_size"),
    ],
)
def test_a_command_that_runs_out_of_memory_says_so_in_two_lines(
    tmp_path: Path, tiny_model_folder: Path, command: Callable[[Path, Path], list[str]], said: str, hint: str
) -> None:
    import resource

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16), (99 * number, 0, 0)).save(pictures / f"{number}.png")
    words = [sys.executable, "-m", "star_cli", *command(tmp_path, tiny_model_folder), "--threads", "1"]
    done = subprocess.run(
        [*words, "--run", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )
    error, advice = done.stderr.splitlines()[-2:]
    assert (done.returncode, done.stdout) == (1, "")
    assert error.startswith(f"error: {said}")
    assert advice.startswith("hint: ")
    assert hint in advice
    assert "Traceback" not in done.stderr
