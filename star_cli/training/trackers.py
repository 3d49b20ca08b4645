"""Where a run's figures go: always metrics.jsonl in its folder, TensorBoard and Weights & Biases where asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from star_cli.errors import OptionError, TrainingError

METRICS = "metrics.jsonl"


class Tracker(Protocol):
    """Takes the figures of a step."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by name."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


class JsonLines:
    """One JSON object a line: `step` and the figures; null stands for what is not finite.

    Args:
        folder: of the run.
        step: what the run goes on from; lines beyond it are of steps that will be done again.
    """

    def __init__(self, folder: Path, step: int):
        self.path = folder / METRICS
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [line for line in self.path.read_text("utf-8").splitlines() if _step_of(line) <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            temporary.replace(self.path)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Append a line.

        Raises:
            TrainingError: it cannot be written.
        """
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **known}) + "\n")
        except OSError as error:
            raise TrainingError(f"cannot write {self.path}: {error.strerror}", "free some space") from error

    def close(self) -> None:
        """Nothing is held back."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A point in each figure's curve."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is held back."""
        self._writer.close()


class Wandb:
    """A run at Weights & Biases; its own variables (WANDB_PROJECT, WANDB_MODE, ...) say where and how."""

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # a resumed run is the same run
        self._run = wandb.init(name=name, id=identity, resume="allow", dir=str(folder), config=dict(settings))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """A point in each figure's curve."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """The run is over."""
        self._run.finish()


class Means:
    """Means of figures over some steps."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, figures: Mapping[str, float], count: int = 1) -> None:
        """One more step, or so many that are alike; a figure that it does not have keeps its mean over the others."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count
            self._counts[name] = self._counts.get(name, 0) + count

    def take(self) -> dict[str, float]:
        """The means since the last call; the next steps begin anew."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


def open_trackers(
    names: Sequence[str], folder: Path, stage: str, step: int, settings: Mapping[str, Any]
) -> list[Tracker]:
    """The trackers of a run.

    Args:
        names: as in `LoopConfig.track`.
        folder: of the run.
        stage: what it trains.
        step: what it goes on from.
        settings: of the run, plain data.
    Raises:
        OptionError: a library is missing.
    """
    trackers: list[Tracker] = [JsonLines(folder, step)]
    if "tensorboard" in names:
        trackers.append(TensorBoard(folder, step))
    if "wandb" in names:
        trackers.append(Wandb(folder, stage, settings))
    return trackers


def _step_of(line: str) -> float:
    """The step of a line; infinity for one that was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _missing(library: str) -> OptionError:
    extra = "wandb" if library == "wandb" else "train"
    return OptionError(f"{library} is not installed", f"pip install 'star-cli[{extra}]', or leave it out of loop.track")
