"""Checkpoints of which every process writes its share, through torch.distributed.checkpoint.

In the folder: the shares of all tensors that are spread over the processes, by their path in the state, and
`state.pt`, the rest of the state with a mark where each of them belongs. Any number of processes reads it back.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_spread
from torch.distributed.checkpoint.state_dict_saver import save as save_spread
from torch.distributed.tensor import DTensor, distribute_tensor

REST = "state.pt"
_MARK = "spread over processes"


def save(path: Path, state: dict[str, Any], is_main: bool) -> None:
    """Write a state as a folder, whole or not at all; all processes call this together.

    Raises:
        OSError, RuntimeError: writing failed.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    if is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    spread: dict[str, Tensor] = {}
    rest = _map(state, "", lambda key, tensor: _set_aside(spread, key, tensor))
    save_spread(spread, checkpoint_id=temporary)
    if is_main:
        torch.save(rest, temporary / REST)
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    dist.barrier()


def load(path: Path, layout: Callable[[str], Tensor | None] | None) -> dict[str, Any]:
    """A state, each tensor laid out as this process wants it; processes that share tensors call it together."""
    rest = torch.load(path / REST, map_location="cpu", weights_only=True)
    known = FileSystemReader(path).read_metadata().state_dict_metadata
    spread: dict[str, Any] = {}
    for key, stored in known.items():
        if not isinstance(stored, TensorStorageMetadata):
            raise ValueError(f"{key} is no tensor")
        like = layout(key) if layout is not None else None
        if isinstance(like, DTensor) and like.shape == stored.size:
            spread[key] = torch.zeros_like(like, dtype=stored.properties.dtype)
        else:
            spread[key] = torch.empty(stored.size, dtype=stored.properties.dtype)
    is_together = dist.is_initialized()
    with warnings.catch_warnings():  # it says that there is but one process, which is no news
        warnings.simplefilter("ignore", UserWarning)
        load_spread(spread, checkpoint_id=path, no_dist=not is_together)
    return _restore(rest, spread)


def lay_out(state: dict[str, Any], layout: Callable[[str], Tensor | None]) -> dict[str, Any]:
    """Whole tensors as this process wants them: its share where they are spread."""

    def spread(key: str, tensor: Tensor) -> Any:
        like = layout(key)
        if isinstance(like, DTensor) and like.shape == tensor.shape:
            return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        return tensor

    return _map(state, "", spread)


def _set_aside(spread: dict[str, Tensor], key: str, tensor: Tensor) -> Any:
    if not isinstance(tensor, DTensor):
        return tensor
    spread[key] = tensor
    return {_MARK: key}


def _map(value: Any, key: str, change: Callable[[str, Tensor], Any]) -> Any:
    """The same nest of dicts and lists with every tensor changed; a tensor's key is its path."""
    if isinstance(value, Tensor):
        return change(key, value)
    if isinstance(value, dict):
        return {name: _map(one, f"{key}/{name}" if key else str(name), change) for name, one in value.items()}
    if isinstance(value, list):
        return [_map(one, f"{key}/{index}", change) for index, one in enumerate(value)]
    return value


def _restore(value: Any, spread: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_MARK}:
            return spread[value[_MARK]]
        return {name: _restore(one, spread) for name, one in value.items()}
    if isinstance(value, list):
        return [_restore(one, spread) for one in value]
    return value
