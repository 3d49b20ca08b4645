"""Out of memory in words: what the run needs it for, and which settings to lower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from star_cli.errors import OptionError, TrainingError
from star_cli.memory import is_out_of_memory
from star_cli.training.batches import count_rows, shard
from star_cli.training.config import LoopConfig
from star_cli.training.stage import Stage


@contextmanager
def memory_in_words(doing: str, hint: str) -> Iterator[None]:
    """Say what was done when memory ran out, and what to change.

    Raises:
        TrainingError: there was not enough of it.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory while {doing}", hint) from error


def state_bytes(stage: Stage, config: LoopConfig, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, int]:
    """What the state of a training takes, as if every process held all of it: two moments for AdamW, one for Muon."""
    learned = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    moments = sum(
        (1 if isinstance(optimizer, torch.optim.Muon) else 2) * _size(group["params"])
        for optimizer in optimizers
        for group in optimizer.param_groups
    )
    return {
        "parameters": _size([*stage.parameters(), *stage.buffers()]),
        "gradients": _size(learned),
        "optimiser": moments,
        "average": _size(list(stage.parameters())) if config.ema_decay else 0,
    }


def activation_bytes(stage: Stage, batch: Any, step: int, config: LoopConfig) -> int | None:
    """What the backward pass of a batch keeps: that of one row, times the rows; None where not even one row fits."""
    rows = count_rows(batch)
    kept: dict[int, int] = {}
    known = {value.untyped_storage().data_ptr() for value in stage.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(stage.parameters()).device
    dtype = getattr(torch, config.precision)
    try:
        one = shard(batch, 0, rows) if stage.shards else batch
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast(device.type, dtype, enabled=config.precision != "float32"),
        ):
            _held = stage(one, step)
    except (RuntimeError, MemoryError, OptionError):
        return None
    return sum(kept.values()) * (rows if stage.shards else 1)


def explain_out_of_memory(
    stage: Stage,
    config: LoopConfig,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Any,
    step: int,
    device: torch.device,
    shares: int = 1,
) -> TrainingError:
    """What a step of this run needs, and what to change so that it needs less.

    Args:
        stage: in training.
        config: of its loop.
        optimizers: of its parameters.
        batch: this process's part of the batch, on the device.
        step: its number.
        device: which ran out.
        shares: processes among which the state is spread.
    """
    stage.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    needs = {name: size // shares for name, size in state_bytes(stage, config, optimizers).items()}
    # a spread model could only be asked by all of its processes at once
    activations = activation_bytes(stage, batch, step, config) if shares == 1 else None
    whole = count_rows(batch)
    rows = -(-whole // config.accumulate)
    if activations is not None:
        needs[f"activations of {rows} rows"] = activations // config.accumulate
    told = ", ".join(f"{name} {size_in_words(size)}" for name, size in needs.items() if size)
    total = size_in_words(sum(needs.values()))
    if activations is None and shares == 1:
        told += ", and activations, of which not even one row's fit"
    return TrainingError(
        f"out of memory on {device} in step {step + 1}: it needs about {total} ({told})",
        _advice(stage, config, whole, device),
    )


def size_in_words(size: int) -> str:
    """Bytes in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _advice(stage: Stage, config: LoopConfig, rows: int, device: torch.device) -> str:
    """Only what this stage can do: not all can compute activations again, or take a batch in parts."""
    ways = []
    if stage.can_checkpoint and not config.checkpointing:
        ways.append("set loop.checkpointing = true")
    if stage.shards and rows > config.accumulate:
        ways.append(f"raise loop.accumulate (now {config.accumulate})")
    ways.append("lower batch_size" if rows > 1 else "train at a lower resolution")
    if config.precision == "float32":
        ways.append('set loop.precision = "bfloat16"')
    if config.ema_decay:
        ways.append("set loop.ema_decay = 0")
    if device.type == "cuda" and config.parallel == "ddp":
        ways.append('share the weights among several GPUs with loop.parallel = "fsdp"')
    return "; or ".join(ways)


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
