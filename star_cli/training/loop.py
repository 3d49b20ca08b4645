"""The loop every stage shares: batch, forward, loss, backward, step, average, save.

Everything random in a batch is a function of the recipe's seed and the step, so a resumed run sees the batches it would
have seen.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from star_cli.errors import TrainingError
from star_cli.training.config import LoopConfig

CHECKPOINT = "checkpoint.pt"
LARGEST_UNFUSED = 128


class BatchSource(ABC):
    """Makes the batch of any step, the same one every time. Runs in a worker process, so it must be picklable."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The batch of one step."""


class Stage(nn.Module, ABC):
    """What is trained, on what, by which loss. Its parameters and buffers are what a checkpoint holds."""

    name: str
    source: BatchSource

    @abstractmethod
    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and figures worth showing. Called under autocast."""

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Matrices from features to features, which Muon may learn: not embeddings, not the head."""
        return []

    def tokens_attending(self, batch: Any) -> int:
        """Tokens of one image that look at each other; the loop chooses the attention kernel by it."""
        return 0

    def preview(self, path: Path) -> None:
        """Draw what the stage can do so far, as a PNG."""


@dataclass(frozen=True)
class Progress:
    """One step, for whoever shows it."""

    stage: str
    step: int
    steps: int
    metrics: dict[str, float]
    seconds: float
    """Time spent on this stage so far, earlier sessions included."""


OnProgress = Callable[[Progress], None]


class _Batches(Dataset[Any]):
    """A source as a map-style dataset of steps, for DataLoader's worker."""

    def __init__(self, source: BatchSource, steps: int):
        self.source, self.steps = source, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        return self.source.batch(step)


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """Warm-up, then decay."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "none":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.decay == "cosine" else 1 - done
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * left)


def _attention_kernel(tokens: int) -> SDPBackend:
    """The faster kernel on a CPU. Fused attention has a slow backward, which pays off only where scores outgrow caches.

    Measured in bfloat16 on whole steps, forward and backward: with 85 tokens (batch 32) the fused kernel takes 1.5
    times as long, with 341 (batch 16) two thirds, with 1,365 half.
    """
    return SDPBackend.MATH if tokens <= LARGEST_UNFUSED else SDPBackend.FLASH_ATTENTION


def make_optimizers(stage: Stage, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and before it Muon where the configuration gives the hidden matrices a rate of their own.

    AdamW decays matrices and convolutions, not gains, biases and single vectors. Muon (Jordan et al. 2024) makes each
    step of a matrix nearly orthogonal, scaled to the rms of an AdamW step (Liu et al. 2025, section 2.2).
    """
    hidden = stage.hidden_matrices() if config.matrix_learning_rate else []
    taken = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in stage.parameters() if parameter.requires_grad and id(parameter) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    if not hidden:
        return [adamw]
    rate, decay = config.matrix_learning_rate, config.weight_decay
    return [torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"), adamw]


class TrainingRun:
    """One stage in training: its optimiser, moving average, position, and their checkpoint."""

    def __init__(self, stage: Stage, config: LoopConfig, folder: Path):
        self.stage, self.config, self.folder = stage, config, folder
        self.optimizers = make_optimizers(stage, config)
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.average: dict[str, Tensor] = {}
        if config.ema_decay:
            self.average = {key: value.detach().clone() for key, value in stage.named_parameters()}

    # -- checkpoint -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the whole state, or leave the previous checkpoint as it was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "stage": self.stage.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "rng": torch.get_rng_state(),
        }
        temporary = self.folder / f"{CHECKPOINT}.{os.getpid()}.tmp"
        try:
            with temporary.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.folder / CHECKPOINT)
        except OSError as error:
            raise TrainingError(
                f"cannot save {self.folder / CHECKPOINT}: {error.strerror}", "free some space"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False when there is none.

        Raises:
            TrainingError: the checkpoint belongs to another architecture.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            self.stage.load_state_dict(state["stage"], strict=True)
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(
                f"{path} belongs to another configuration: {error}", "use another --run folder, or delete this one"
            ) from error
        self.average = state["average"]
        self.step, self.seconds, self.skipped = state["step"], state["seconds"], state["skipped"]
        torch.set_rng_state(state["rng"])
        return True

    # -- training ---------------------------------------------------------------------------------------------------

    def train(self, on_progress: OnProgress | None = None) -> None:
        """Run to the last step, saving on the way."""
        self.stage.train()
        began = time.monotonic() - self.seconds
        for batch in self._batches():
            metrics = self._one_step(batch)
            self.step += 1
            self.seconds = time.monotonic() - began
            if on_progress is not None:
                on_progress(Progress(self.stage.name, self.step, self.config.steps, metrics, self.seconds))
            if self.config.preview_every and self.step % self.config.preview_every == 0:
                self.preview()
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self.save()
        self.finish()

    def _batches(self) -> Iterator[Any]:
        # one worker draws the next batches while this process trains; its torch uses a single thread
        loader = DataLoader(
            _Batches(self.stage.source, self.config.steps),
            batch_size=None,
            sampler=range(self.step, self.config.steps),
            num_workers=1,
            generator=torch.Generator(),  # else it takes its seed from the global one, and a resumed run would differ
        )
        return iter(loader)

    def _one_step(self, batch: Any) -> dict[str, float]:
        rate = learning_rate_at(self.step, self.config)
        self._set_rates(rate / self.config.learning_rate)
        with (
            sdpa_kernel(_attention_kernel(self.stage.tokens_attending(batch))),
            torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"),
        ):
            loss, metrics = self.stage.loss(batch, self.step)
        self.stage.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.stage.parameters(), self.config.clip_norm)
        if torch.isfinite(norm):
            for optimizer in self.optimizers:
                optimizer.step()
            self._update_average()
        else:
            self.skipped += 1
        return {"loss": loss.item(), **metrics, "rate": rate, "norm": norm.item(), "skipped": float(self.skipped)}

    def _set_rates(self, share: float) -> None:
        """Every optimiser at this share of its own full rate."""
        for optimizer in self.optimizers:
            is_muon = isinstance(optimizer, torch.optim.Muon)
            full = self.config.matrix_learning_rate if is_muon else self.config.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = share * full

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self.average:
            return
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))  # follows fast while little is known
        for key, value in self.stage.named_parameters():
            self.average[key].lerp_(value, 1 - decay)

    def preview(self) -> None:
        """Draw a preview with the averaged weights."""
        current = {key: value.detach().clone() for key, value in self.stage.named_parameters()} if self.average else {}
        rng = torch.get_rng_state()
        self._put(self.average)
        self.stage.eval()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stage.preview(self.folder / f"preview-{self.step:06d}.png")
        self.stage.train()
        self._put(current)
        torch.set_rng_state(rng)

    def finish(self) -> None:
        """Leave the stage as later stages use it: averaged weights, evaluation mode, no gradients."""
        self._put(self.average)
        self.stage.eval().requires_grad_(False)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        parameters = dict(self.stage.named_parameters())
        for key, value in values.items():
            parameters[key].copy_(value)


def is_finished(folder: Path, config: LoopConfig) -> bool:
    """Whether a stage's checkpoint there is that of its last step."""
    path = folder / CHECKPOINT
    return path.exists() and torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"] >= config.steps


def train_stage(stage: Stage, config: LoopConfig, folder: Path, on_progress: OnProgress | None = None) -> float:
    """Train a stage, or take it from its finished checkpoint; gives the seconds it took in all sessions together."""
    run = TrainingRun(stage, config, folder)
    run.resume()
    if run.step < config.steps:
        run.train(on_progress)
    else:
        run.finish()
    return run.seconds
