"""What several training processes do together with tensors; alone, each of these gives back what it was given.

Row i of a step's batch is with process i % W, its row i // W. Letters: W processes, B rows.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """W; 1 where no process group was made."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of all processes' values, in place."""
    if world() > 1:
        dist.all_reduce(values)
    return values


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of all processes' values, in place."""
    return sum_over_ranks(values).div_(world()) if world() > 1 else values


def max_over_ranks(values: Tensor) -> Tensor:
    """The largest of all processes' values, in place."""
    if world() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def of_first_rank(values: Tensor) -> Tensor:
    """The first process's values, in place: for what was drawn at random."""
    if world() > 1:
        dist.broadcast(values, 0)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in the order one process would have them: (B, ...) -> (B of all, ...).

    Processes may hold one row more or less than each other, as shares of a batch do.
    """
    if world() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = int(torch.cat(counts).max())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.zeros_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded.contiguous())
    # the first processes hold the rows in excess, so what was padded comes last
    return torch.stack(parts, dim=1).flatten(0, 1)[: int(torch.cat(counts).sum())]
