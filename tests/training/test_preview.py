"""Contact sheets of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from star_cli.training.preview import save_grid


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
