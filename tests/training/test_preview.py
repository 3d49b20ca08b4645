"""Contact sheets of a run."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star_cli.errors import OutputError
from star_cli.training.preview import save_grid, save_prompts


@pytest.mark.parametrize(("count", "size"), [(1, (8, 8)), (3, (24, 8)), (4, (32, 8)), (6, (32, 16))])
def test_a_grid_holds_every_picture_and_is_white_where_there_is_none(
    tmp_path: Path, count: int, size: tuple[int, int]
) -> None:
    images = torch.linspace(-1, 0, count)[:, None, None, None].expand(count, 3, 8, 8)
    save_grid(images, tmp_path / "grid.png", columns=4)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == size
        cells = np.asarray(grid)[::8, ::8, 0].flatten()
    assert len(set(cells[:count])) == count
    assert (cells[count:] == 255).all()


def test_a_preview_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    save_grid(torch.zeros(1, 3, 8, 8), path, columns=1)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            save_grid(torch.rand(4, 3, 64, 64), path, columns=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_prompts_of_a_preview_stand_beside_it(tmp_path: Path) -> None:
    save_prompts(["a cat", "żółw"], tmp_path / "preview-000004.png")
    assert (tmp_path / "preview-000004.txt").read_text("utf-8") == "a cat\nżółw\n"
