"""Contact sheets of tensors, for looking at a run."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write images (n, 3, H, W), -1..1, as one PNG, row by row."""
    rows = [torch.cat(list(row), dim=-1) for row in images.split(columns) if len(row) == columns]
    pixels = (torch.cat(rows, dim=-2).float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(path)
