"""Batches of any make: how many rows they have, a share of them, the way to the device, and the loader.

A batch is a tensor, a list, or a tuple, named tuple or dataclass of them; rows are the first dimension of each tensor
and list. A batch that has other shapes in it writes its own `shard` and `to`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from star_cli.data.read_ahead import read_ahead
from star_cli.errors import OptionError

if TYPE_CHECKING:
    from star_cli.training.stage import BatchSource


def count_rows(batch: Any) -> int:
    """Rows of a batch: the length of the first tensor or list in it."""
    for leaf in _leaves(batch):
        return len(leaf)
    return 1


def shard(batch: Any, rank: int, world: int) -> Any:
    """Rows rank, rank + world, rank + 2 world, ... of a batch.

    Raises:
        OptionError: there are fewer rows than shares.
    """
    if world == 1:
        return batch
    if (rows := count_rows(batch)) < world:
        raise OptionError(
            f"a batch of {rows} cannot be shared by {world}", "raise batch_size, or lower accumulate or the processes"
        )
    if hasattr(batch, "shard"):
        return batch.shard(rank, world)
    return _each(batch, lambda leaf: leaf[rank::world] if isinstance(leaf, list) or leaf.ndim else leaf)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    if device.type == "cpu":
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    return _each(batch, lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf)


def load_batches(
    source: BatchSource, first: int, last: int, workers: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Any, int]]:
    """The rank's rows of the batches of steps first to last - 1, each with the rows of the whole batch.

    Raises:
        Exception: as the source raises it.
        RuntimeError: from DataLoader, when a worker died.
    """
    yield from read_ahead(partial(source.part, rank=rank, world=world), range(first, last), workers)


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        if batch.ndim:
            yield batch
    elif isinstance(batch, list):
        yield batch
    elif isinstance(batch, tuple):
        for value in batch:
            yield from _leaves(value)
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from _leaves(getattr(batch, field.name))


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The batch with every tensor and every list changed."""
    if isinstance(batch, Tensor | list):
        return change(batch)
    if isinstance(batch, tuple):
        changed = [_each(value, change) for value in batch]
        return type(batch)(*changed) if hasattr(batch, "_fields") else tuple(changed)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: _each(getattr(batch, field.name), change) for field in fields(batch)})
    return batch
