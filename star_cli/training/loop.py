"""The loop every stage shares: batch, forward, loss, backward, step, average, log, save.

Everything random in a batch is a function of the recipe's seed and the step, so a resumed run sees the batches it would
have seen.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star_cli.errors import TrainingError
from star_cli.memory import is_out_of_memory
from star_cli.training import lora
from star_cli.training.batches import count_rows, load_batches, shard, to_device
from star_cli.training.checkpoint import OnNote, list_checkpoints, read_step, remove_unfinished
from star_cli.training.config import LoopConfig
from star_cli.training.distributed import gradients_later, is_sharded, put_together, same_everywhere, whole
from star_cli.training.memory import explain_out_of_memory, memory_in_words
from star_cli.training.optimizers import learning_rate_at, opponent_parameters, set_rates
from star_cli.training.run_state import RunState, random_state, set_random_state
from star_cli.training.signals import StopRequest, stop_on_signal
from star_cli.training.stage import BatchSource, Stage
from star_cli.training.throughput import Figures, Meter
from star_cli.training.trackers import Means, Tracker, open_trackers

__all__ = ["BatchSource", "OnProgress", "Progress", "Stage", "TrainingRun", "is_finished", "train_stage"]


@dataclass(frozen=True)
class Progress:
    """One step, for whoever shows it."""

    stage: str
    step: int
    steps: int
    metrics: dict[str, float]
    seconds: float
    """Time spent on this stage so far, earlier sessions included."""
    figures: Figures = field(default_factory=Figures)


OnProgress = Callable[[Progress], None]


class TrainingRun(RunState):
    """One stage in training."""

    def train(self, on_progress: OnProgress | None = None) -> None:
        """Run to the last step, saving on the way; when asked to stop, finish the step, save, and stop.

        Raises:
            TrainingError: no finite step for too long, out of memory, a checkpoint cannot be written, or the signal to
                stop ended nothing.
        """
        self.engine.train()
        is_main = self.processes.is_main
        trackers: list[Tracker] = []
        if is_main:
            remove_unfinished(self.folder)
            trackers = open_trackers(self.config.track, self.folder, self.stage.name, self.step, self.settings)
        try:
            with stop_on_signal() as stop:
                self._steps(on_progress if is_main else None, trackers, stop)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TrainingError(
                f"a process that makes batches is gone: {error}",
                "when memory ran out, set loop.workers = 0, which makes batches in the training process",
            ) from error
        finally:
            for tracker in trackers:
                tracker.close()
        if self.step < self.config.steps:
            raise TrainingError(
                f"stage {self.stage.name} was asked to stop after step {self.step} of {self.config.steps}",
                "call it again: it goes on from there",
            )
        self.finish()

    def _steps(self, on_progress: OnProgress | None, trackers: Sequence[Tracker], stop: StopRequest) -> None:
        config = self.config
        meter, since_log = Meter(self.processes.device, config.precision), Means()
        seconds_before = self.seconds
        for batch, rows in self._batches():
            with meter.working():
                metrics = self._guarded_step(batch, rows, stop)
            step, self.step = self.step, self.step + 1
            if config.evaluate_every and self.step % config.evaluate_every == 0:
                metrics |= self.evaluate()
            tokens = self.stage.tokens(batch, step) * rows / count_rows(batch)
            meter.step(rows, tokens, self.stage.flops(batch, step))
            self.seconds = seconds_before + meter.seconds
            self.since_save.add(metrics)
            since_log.add(metrics)
            figures = meter.figures(config.steps - self.step)
            if on_progress is not None:
                on_progress(Progress(self.stage.name, self.step, config.steps, metrics, self.seconds, figures))
            if self.step % config.log_every == 0 or self.step == config.steps:
                _log(trackers, self.step, since_log.take(), figures, self.seconds)
            if config.preview_every and self.step % config.preview_every == 0:
                self.preview()
            if self.step % config.save_every == 0 or self.step == config.steps or stop:
                self.save()
            if stop:
                return

    def _batches(self) -> Iterator[tuple[Any, int]]:
        """This process's rows of all batches to come, on the device, each with the rows of the whole batch."""
        config, processes = self.config, self.processes
        rank, world = (processes.rank, processes.world) if self.stage.shards else (0, 1)
        way_out = "lower batch_size, or set loop.workers = 0: no process then makes batches ahead"
        with memory_in_words("batches were made", way_out):
            for batch, rows in load_batches(self.stage.source, self.step, config.steps, config.workers, rank, world):
                yield to_device(batch, processes.device), rows

    def _guarded_step(self, batch: Any, rows: int, stop: StopRequest) -> dict[str, float]:
        """A step; running out of memory is put into words once the step's own memory is free."""
        try:
            return self._one_step(batch, rows, stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        shares = self.processes.world if is_sharded(self.engine) else 1
        raise explain_out_of_memory(
            self.model, self.config, self.optimizers, batch, self.step, self.processes.device, shares
        )

    def _one_step(self, batch: Any, rows: int, stop: StopRequest) -> dict[str, float]:
        rate = learning_rate_at(self.step, self.config)
        set_rates(self.optimizers, rate / self.config.learning_rate)
        self.engine.zero_grad(set_to_none=True)
        loss, metrics = self._gradients(batch, rows)
        loss, metrics = self._agree(loss, metrics, stop)
        norm = self._update(loss)
        told = {name: float(value) for name, value in metrics.items()}
        return {"loss": loss.item(), **told, "rate": rate, "norm": norm.item(), "skipped": float(self.skipped)}

    def _gradients(self, batch: Any, rows: int) -> tuple[Tensor, dict[str, Any]]:
        """Forward and backward, part by part: the loss and metrics of this process's rows, gradients of all.

        Args:
            batch: this process's rows.
            rows: of the whole batch; parts weigh as much as they hold of it.
        """
        config, device = self.config, self.processes.device
        parts = config.accumulate
        shares = self.processes.world if self.stage.shards else 1
        dtype = getattr(torch, config.precision)
        loss, metrics = torch.zeros((), device=device), Means()
        for index in range(parts):
            part = shard(batch, index, parts)
            weight = count_rows(part) * shares / rows
            with (
                gradients_later(self.engine, index < parts - 1),
                torch.autocast(device.type, dtype, enabled=config.precision != "float32"),
            ):
                part_loss, part_metrics = self.engine(part, self.step)
                if weight != 1:
                    part_loss = part_loss * weight
            self.scaler.scale(part_loss).backward()
            loss = loss + part_loss.detach()
            metrics.add(part_metrics)
        return loss, metrics.take()

    def _agree(self, loss: Tensor, metrics: dict[str, Any], stop: StopRequest) -> tuple[Tensor, dict[str, Any]]:
        """Means over processes; when one was asked to stop, all stop after this step."""
        if self.processes.world == 1:
            return loss, metrics
        values = [float(bool(stop)), float(loss), *(float(value) for value in metrics.values())]
        asked, mean, *means = self.processes.mean(torch.tensor(values, device=self.processes.device)).unbind()
        if asked > 0 and not stop:
            stop.number = signal.SIGTERM
        return mean, dict(zip(metrics, means, strict=True))

    def _update(self, loss: Tensor) -> Tensor:
        """Clip and step, or skip what is not finite; gives the gradients' norm, without the opponent's.

        Raises:
            TrainingError: too many steps in a row had to be skipped.
        """
        moving = [optimizer for optimizer in self.optimizers if _has_gradients(optimizer)]
        for optimizer in moving:
            self.scaler.unscale_(optimizer)
        norm, against = self._clip()
        is_finite = bool(torch.isfinite(norm) & torch.isfinite(against) & torch.isfinite(loss))
        if is_finite:
            for optimizer in moving:
                self.scaler.step(optimizer)
        self.model.after_step(self.step)
        if is_finite:
            self.average.update(self.step, self.model.set_anew())
            self.skipped_in_row = 0
        else:
            self.skipped += 1
            self.skipped_in_row += 1
        self.scaler.update()
        if 0 < self.config.max_skipped <= self.skipped_in_row:
            raise self._not_finite(loss)
        return norm

    def _clip(self) -> tuple[Tensor, Tensor]:
        """Clip each side's gradients; gives their norms, the opponent's second."""
        against = opponent_parameters(self.model)
        taken = {id(parameter) for parameter in against}
        own = [parameter for parameter in self.engine.parameters() if id(parameter) not in taken]
        norm, other = (put_together(nn.utils.clip_grad_norm_(each, self.config.clip_norm)) for each in (own, against))
        return norm, other.to(norm.device)

    def _not_finite(self, loss: Tensor) -> TrainingError:
        what = "gradients" if bool(torch.isfinite(loss)) else "loss"
        ways = f"lower loop.learning_rate (now {self.config.learning_rate:g})"
        if self.config.matrix_learning_rate:
            ways += f" and loop.matrix_learning_rate (now {self.config.matrix_learning_rate:g})"
        if self.config.precision != "float32":
            ways += f', or set loop.precision = "float32" (now "{self.config.precision}")'
        return TrainingError(
            f"the {what} of {self.skipped_in_row} steps in a row, up to step {self.step + 1}, were not finite numbers",
            f"{ways}; the last checkpoint is of before or while this began",
        )

    # -- what a stage gives -----------------------------------------------------------------------------------------

    def preview(self) -> None:
        """Draw a preview with the averaged weights. All processes call this together."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._as_it_will_be() as stage:
            if stage is not None:
                stage.preview(self.folder / f"preview-{self.step:06d}.png")

    def evaluate(self) -> dict[str, float]:
        """Judge the averaged weights by held-out data. All processes call this together, and get the same figures."""
        with self._as_it_will_be() as stage:
            figures = stage.evaluate() if stage is not None else {}
        return dict(self.processes.gather(figures)[0])

    @contextmanager
    def _as_it_will_be(self) -> Iterator[Stage | None]:
        """The stage with averaged weights, in evaluation mode, in the first process; None in the others.

        Afterwards all is as it was, random numbers too.
        """
        rng = random_state()
        with memory_in_words(
            "a preview was drawn or the stage was judged", "set loop.preview_every = 0 and loop.evaluate_every = 0"
        ):
            if is_sharded(self.engine):
                self._take_weights()
                if self.processes.is_main:
                    self.stage.to_device(self.processes.device)
                yield self.stage.eval() if self.processes.is_main else None
                self.stage.to("cpu")
            elif self.processes.is_main:
                with self.average.in_place():
                    yield self.model.eval()
                self.model.train()
            else:
                yield None
        set_random_state(rng)

    def finish(self) -> None:
        """Leave the stage as later stages use it: averaged weights, evaluation mode, no gradients, on the CPU."""
        if is_sharded(self.engine):
            self._take_weights()
        else:
            self.average.put()
            same_everywhere(self.model)
        if self.config.lora_rank:
            lora.merge_adapters(self.stage)
        self.stage.eval().requires_grad_(False)
        self.stage.to_device("cpu")

    def _take_weights(self) -> None:
        """Put the shares together in the stage outside; averages where there are any."""
        self.stage.load_state_dict(whole({**self.model.state_dict(), **self.average.values}))


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Has the backward pass reached anything it moves? A discriminator begins late."""
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def _log(trackers: Sequence[Tracker], step: int, metrics: dict[str, float], figures: Figures, seconds: float) -> None:
    speed = {name: value for name, value in asdict(figures).items() if value is not None}
    for tracker in trackers:
        tracker.log(step, {**metrics, **speed, "seconds": seconds})


def is_finished(folder: Path, config: LoopConfig) -> bool:
    """Whether a stage's newest checkpoint that can be read is that of its last step."""
    for path in list_checkpoints(folder):
        try:
            return read_step(path) >= config.steps
        except TrainingError:
            continue
    return False


def train_stage(
    stage: Stage,
    config: LoopConfig,
    folder: Path,
    on_progress: OnProgress | None = None,
    *,
    resume: str | Path = "auto",
    on_note: OnNote | None = None,
    on_begin: Callable[[], None] | None = None,
) -> float:
    """Train a stage, or take it from its finished checkpoint; gives the seconds it took in all sessions together.

    Args:
        stage: what to train; has the averaged weights afterwards.
        config: of the loop.
        folder: for checkpoints, metrics and previews.
        on_progress: called after each step, in the first of several processes.
        resume: "auto", "never", or where the checkpoint is, see `RunState.resume`.
        on_note: told what the user should know though the work goes on: settings that changed, a damaged checkpoint.
        on_begin: called once it is known that the run goes on with what is in the folder, before the first step.
    """
    run = TrainingRun(stage, config, folder, on_note)
    run.resume(resume)
    if on_begin is not None:
        on_begin()
    if run.step < config.steps:
        run.train(on_progress)
    else:
        run.finish()
    return run.seconds
