"""Stage 1 in two processes (gloo): the codebook counts the rows of both, and nothing differs from one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.training.ranks import gather_rows, max_over_ranks, mean_over_ranks, of_first_rank, sum_over_ranks
from tests.training.ranks_at_work import train, train_by_the_loop


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes ends with."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.ranks_at_work", str(rank), "2", str(folder)],
            cwd=root,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_train_as_one(two: list[dict[str, Any]]) -> None:
    alone = train(0)
    assert torch.allclose(two[0]["losses"], alone["losses"], atol=1e-4)
    for key, value in alone["state"].items():
        assert torch.allclose(two[0]["state"][key].float(), value.float(), atol=1e-4), key


def test_the_loop_gives_two_processes_the_curve_of_one(tmp_path: Path, two: list[dict[str, Any]]) -> None:
    alone, together = train_by_the_loop(tmp_path), two[0]["steps"]
    one, two_of_them = ([step["loss"] for step in steps] for steps in (alone, together))
    assert two_of_them[:7] == pytest.approx(one[:7], abs=1e-4)
    # Adam makes a whole step of the discriminator's gradients that are nothing but rounding
    assert two_of_them == pytest.approx(one, rel=5e-4)
    for step in (4, 9):
        assert together[step]["held-out psnr"] == pytest.approx(alone[step]["held-out psnr"], abs=1e-2)


def test_all_processes_end_with_the_same_codebook_and_counts(two: list[dict[str, Any]]) -> None:
    for key in ("vqvae.quantizer.codebook.weight", "average.counts", "average.sums", "usage.last_used"):
        assert torch.equal(two[0]["state"][key], two[1]["state"][key]), key


def test_rows_come_together_in_the_order_of_one_process(two: list[dict[str, Any]]) -> None:
    for rank in range(2):
        assert torch.equal(two[rank]["rows"], torch.arange(15.0).view(5, 3))


def test_a_process_on_its_own_keeps_what_it_has() -> None:
    values = torch.arange(4.0)
    for each in (gather_rows, max_over_ranks, mean_over_ranks, of_first_rank, sum_over_ranks):
        assert torch.equal(each(values.clone()), values)
