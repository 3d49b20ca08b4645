"""Checkpoints of a run: whole or not there, the newest few and the best kept, a damaged one passed over.

A checkpoint is a file of everything (`checkpoint-00000250.pt`), or, from a run whose processes each hold a share of the
weights, a folder of that name with the shares (`shares.py`).
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star_cli.errors import TrainingError

FORMAT = 3
OLD_NAME = "checkpoint.pt"  # the only one of a run, before checkpoints carried their step
_NAME = re.compile(r"checkpoint-(\d{8})(\.pt)?")
_DAMAGE = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError)


class NewerFormatError(TrainingError):
    """A checkpoint that a newer version wrote: no damage, so none before it may take its place."""


OnNote = Callable[[str], None]
"""Told what the user should know though the work goes on."""
Layout = Callable[[str], Tensor | None]
"""How a tensor of this path in the state is laid out; None: whole, on the CPU."""


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    old = [folder / OLD_NAME] if (folder / OLD_NAME).exists() else []
    return sorted(named, key=step_of, reverse=True) + old


def refuse_a_run(folder: Path) -> None:
    """For a run that must not go on with another.

    Raises:
        TrainingError: the folder holds checkpoints.
    """
    if there := list_checkpoints(folder):
        raise TrainingError(f"{folder} holds a run already ({there[0].name})", "use another --run folder, or delete it")


def step_of(path: Path) -> int:
    """Steps that were done when this checkpoint was written; -1 where the name does not tell."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write a whole state as one file, or leave everything as it was.

    Raises:
        TrainingError: writing failed; earlier checkpoints can still be read.
    """
    path = folder / f"checkpoint-{state['step']:08d}.pt"
    temporary = folder / f"{path.name}.{os.getpid()}.tmp"
    with saving(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(folder)
        finally:
            temporary.unlink(missing_ok=True)
    return path


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Words for what may go wrong while a checkpoint is written; torch's own writer hides the system's error."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = next((one for one in _chain(error) if isinstance(one, OSError)), None)
        reason = (cause.strerror if cause is not None else None) or error
        raise TrainingError(
            f"cannot save {path}: {reason}",
            "free some space, or keep fewer with loop.keep_last; the run then goes on from the checkpoint before",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut; where folders cannot be opened (Windows), the system sees to it."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_step(path: Path) -> int:
    """Steps that were done when this checkpoint was written, from the checkpoint itself.

    Raises:
        TrainingError: it cannot be read.
    """
    from star_cli.training import shares

    try:
        # tensors stay on the disk
        state = torch.load(path / shares.REST if path.is_dir() else path, weights_only=True, mmap=True)
        return int(state["step"])
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def load_checkpoint(path: Path, layout: Layout | None = None) -> dict[str, Any]:
    """The state in a checkpoint of either kind.

    Args:
        path: file or folder.
        layout: how tensors are laid out over the processes; None: each is whole, on the CPU.
    Raises:
        TrainingError: it cannot be read.
    """
    from star_cli.training import shares

    try:
        if path.is_dir():
            return _upgraded(path, shares.load(path, layout))
        state = _upgraded(path, torch.load(path, map_location="cpu", weights_only=True))
        return state if layout is None else shares.lay_out(state, layout)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def load_newest(folder: Path, layout: Layout | None, on_note: OnNote) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that can be read; None when there is none at all.

    Raises:
        TrainingError: there are some, and none can be read; or the newest is of a newer version.
    """
    failure: TrainingError | None = None
    for path in list_checkpoints(folder):
        try:
            return path, load_checkpoint(path, layout)
        except NewerFormatError:
            raise
        except TrainingError as error:
            on_note(f"{error}; trying the checkpoint before")
            failure = error
    if failure is not None:
        raise TrainingError(f"no checkpoint in {folder} can be read", "delete them to start anew") from failure
    return None


def prune(folder: Path, step: int, keep_last: int, best_step: int | None) -> None:
    """Delete all checkpoints but the newest few and the best one.

    Args:
        folder: of the run.
        step: the newest one's. Those beyond it are damaged, or of a course that the run has left.
        keep_last: how many to keep.
        best_step: the best one's; None: there is none.
    """
    paths = list_checkpoints(folder)
    beyond = [path for path in paths if step_of(path) > step]
    kept = [path for path in paths if path not in beyond][:keep_last]
    for path in paths:
        if path in beyond or (path not in kept and step_of(path) != best_step):
            _remove(path)


def remove_unfinished(folder: Path) -> None:
    """What a process that was killed while saving left behind."""
    for path in folder.glob("checkpoint-*.tmp"):
        _remove(path)


def _unreadable(path: Path, error: Exception) -> TrainingError:
    reason = str(error).split("\n")[0][:200]
    return TrainingError(f"{path} cannot be read: {reason}", "it may have been cut off; use another one")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _upgraded(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had the random state of torch on one process, and no settings; up to 2 stage 1 kept a bound."""
    if (version := state.get("format", 1)) > FORMAT:
        raise NewerFormatError(
            f"{path} is of format {version}, this version of star reads up to {FORMAT}", "go on with the newer version"
        )
    state["stage"].pop("average.dead_below", None)
    if isinstance(state["rng"], Tensor):
        return {**state, "rng": [{"torch": state["rng"]}]}
    return state


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
