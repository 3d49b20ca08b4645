"""Everything a checkpoint holds, and the two ways: into a checkpoint, and back from one."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from star_cli.errors import OptionError, TrainingError
from star_cli.training import lora, settings
from star_cli.training.average import MovingAverage
from star_cli.training.checkpoint import (
    FORMAT,
    OnNote,
    load_checkpoint,
    load_newest,
    prune,
    refuse_a_run,
    save_checkpoint,
    saving,
)
from star_cli.training.config import LoopConfig
from star_cli.training.distributed import Processes, is_sharded, join, layout_of, plain, wrap
from star_cli.training.optimizers import make_optimizers
from star_cli.training.stage import Stage
from star_cli.training.trackers import Means


class RunState:
    """A stage with its optimisers, moving average, loss scale, position and random generators.

    Args:
        stage: what is trained.
        config: of the loop.
        folder: where checkpoints are.
        on_note: told what the user should know though the work goes on.
    """

    def __init__(self, stage: Stage, config: LoopConfig, folder: Path, on_note: OnNote | None = None):
        self.stage, self.config, self.folder = stage, config, folder
        self.processes: Processes = join(config)
        self.note: OnNote = on_note if on_note and self.processes.is_main else lambda text: None
        if config.lora_rank:
            lora.add_adapters(stage, config.lora_rank, config.lora_alpha)
        if config.checkpointing and not stage.can_checkpoint:
            raise OptionError(f"stage {stage.name} keeps all activations", "set loop.checkpointing = false")
        stage.set_checkpointing(config.checkpointing)
        if config.accumulate > 1 and not stage.shards:
            raise OptionError(f"stage {stage.name} needs its batches whole", "set loop.accumulate = 1")
        if config.evaluate_every and not stage.is_judged:
            raise OptionError(
                f"stage {stage.name} has no held-out pictures to be judged by",
                "name some in `held_out` where the stage has it, or set loop.evaluate_every = 0",
            )
        self.engine = wrap(stage, config, self.processes)
        self.optimizers = make_optimizers(self.model, config)
        self.average = MovingAverage(self.model, config.ema_decay, learned_only=bool(config.lora_rank))
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=config.precision == "float16")
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.skipped_in_row = 0
        self.best: dict[str, Any] = {}
        self.since_save = Means()
        self._saved_at = 0

    @property
    def model(self) -> Stage:
        """The stage that learns: the one given, or its copy in shares."""
        return plain(self.engine)

    @property
    def settings(self) -> dict[str, Any]:
        """What a later session must share."""
        return {"loop": self.config.to_dict(), **self.stage.settings()}

    # -- into a checkpoint ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state, or leave the previous checkpoint as it was. All processes call this together.

        Raises:
            TrainingError: writing failed.
        """
        means = self.since_save.take()
        self._judge(means)
        state = self._state(self.processes.gather(random_state()))
        if is_sharded(self.engine):
            from star_cli.training import shares

            path = self.folder / f"checkpoint-{self.step:08d}"
            with saving(path):
                shares.save(path, state, self.processes.is_main)
        elif self.processes.is_main:
            save_checkpoint(self.folder, state)
        if self.processes.is_main:
            best = int(self.best["step"]) if self.best else None
            prune(self.folder, self.step, self.config.keep_last, best)
        self._check_metric(means)  # after all is on disk
        self._saved_at = self.step

    def _state(self, rng: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "stage": self._stage_state(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.values,
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "best": self.best,
            "rng": rng,
            "settings": self.settings,
        }

    def _stage_state(self) -> dict[str, Any]:
        """Parameters and buffers; under adapters without the big weights, which do not move."""
        fixed = self._fixed()
        return {key: value for key, value in self.model.state_dict().items() if key not in fixed}

    def _fixed(self) -> set[str]:
        if not self.config.lora_rank:
            return set()
        return {key for key, value in self.model.named_parameters() if not value.requires_grad}

    def _judge(self, means: Mapping[str, float]) -> None:
        """Is this the best so far? Not without the figure: some come with evaluations alone."""
        name = self.config.keep_best
        value = means.get(name.removeprefix("-"), math.nan) * (-1.0 if name.startswith("-") else 1.0)
        if math.isfinite(value) and (not self.best or value < self.best["value"]):
            self.best = {"step": float(self.step), "value": value, "metric": name}

    def _check_metric(self, means: Mapping[str, float]) -> None:
        """Does `keep_best` name one of the metrics?

        Raises:
            OptionError: it does not, though all that there are have been told since the last save.
        """
        name, every = self.config.keep_best.removeprefix("-"), self.config.evaluate_every
        has_evaluated = not every or self.step // every > self._saved_at // every
        if name and means and name not in means and has_evaluated:
            raise OptionError(f"keep_best: there is no metric {name}", f"there are: {', '.join(means)}")

    # -- back from one ----------------------------------------------------------------------------------------------

    def resume(self, where: str | Path = "auto") -> bool:
        """Go on from a checkpoint; False when there is none.

        Args:
            where: "auto": the newest of this run's folder that can be read, if there is one. "never": the folder must
                not hold any. Else a checkpoint, or the folder of a run.
        Raises:
            TrainingError: the checkpoint is of another architecture or other settings, or cannot be read.
        """
        found = self._find(where)
        if found is None:
            return False
        path, state = found
        changes = settings.compare(state.get("settings", {}), self.settings)
        if changes:
            self.note(f"going on from step {state['step']} with other settings; what changed: {', '.join(changes)}")
        try:
            own = self.model.state_dict()
            self.model.load_state_dict({key: own[key] for key in self._fixed()} | state["stage"], strict=True)
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            self.average.load(state["average"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(
                f"{path} belongs to another configuration: {error}", "use another --run folder, or delete this one"
            ) from error
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self._saved_at = state["step"]
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        self.skipped_in_row, self.best = state.get("skipped_in_row", 0), dict(state.get("best", {}))
        if self.best.get("metric", self.config.keep_best) != self.config.keep_best:  # older ones did not say which
            self.best = {}
        if self.processes.rank < len(state["rng"]):
            set_random_state(state["rng"][self.processes.rank])
        return True

    def _find(self, where: str | Path) -> tuple[Path, dict[str, Any]] | None:
        layout = layout_of(self.engine, self.optimizers)
        if where == "auto":
            return load_newest(self.folder, layout, self.note)
        if where == "never":
            refuse_a_run(self.folder)
            return None
        path = Path(where)
        if not path.exists():
            raise TrainingError(f"no checkpoint {path}", "give a checkpoint, a run's folder, auto, or never")
        if path.is_dir() and not (path / "state.pt").exists():
            found = load_newest(path, layout, self.note)
            if found is None:
                raise TrainingError(f"there is no checkpoint in {path}", "give a checkpoint, auto, or never")
            return found
        return path, load_checkpoint(path, layout)


def random_state() -> dict[str, Any]:
    """State of every generator of this process."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave; a generator that it does not tell of is left alone."""
    torch.set_rng_state(state["torch"])
    if "python" in state:
        random.setstate(state["python"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
