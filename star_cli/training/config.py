"""Settings of the training loop, and reading a recipe file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from star_cli.errors import OptionError
from star_cli.models.config import Config

TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """One stage's optimiser and bookkeeping. Defaults follow VAR and STAR where they say."""

    steps: int
    """Optimiser steps of the stage."""
    learning_rate: float
    """Rate after warm-up."""
    matrix_learning_rate: float = 0.0
    """Rate of Muon on the matrices inside the blocks, with the same course; 0: AdamW learns these too."""
    warmup_steps: int = 50
    """Steps over which the rate rises linearly from zero."""
    decay: Literal["cosine", "linear", "none"] = "cosine"
    """How the rate falls after warm-up, to `final_rate` times the rate."""
    final_rate: float = 0.02
    """Share of the rate left at the last step."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only, and Muon's."""
    beta1: float = 0.9
    """AdamW's first decay."""
    beta2: float = 0.95
    """AdamW's second decay."""
    clip_norm: float = 2.0
    """Largest norm of all gradients together."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is then what the stage gives; 0 keeps none."""
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Precision of matrix products and convolutions in training (autocast); float16 scales the loss as it goes."""
    accumulate: int = 1
    """Parts of a batch that go through the model one after the other: the batch's gradient in a part's memory."""
    checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, steps a third longer."""
    compile: bool = False
    """Compile the blocks with `torch.compile`."""
    max_skipped: int = 25
    """Steps in a row without finite loss and gradients after which the run gives up; 0: never."""

    device: str = "auto"
    """Where to train: "cuda", "mps", "cpu", or "auto" for the fastest that is there."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: each holds all weights (DDP), or a share of weights, gradients and optimiser (FSDP2)."""
    workers: int = 1
    """Processes that make the next batches meanwhile; 0 makes them between the steps."""

    save_every: int = 250
    """Steps between checkpoints."""
    keep_last: int = 2
    """Newest checkpoints that are kept: should the newest be damaged, a run goes on from the one before."""
    keep_best: str = ""
    """Metric whose smallest mean between two checkpoints marks one more to keep; "-psnr": the largest. "": none."""
    preview_every: int = 0
    """Steps between preview pictures; 0 draws none."""
    evaluate_every: int = 0
    """Steps between evaluations on held-out data; 0 makes none."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl and points of the trackers."""
    track: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl: "tensorboard", "wandb"."""

    lora_rank: int = 0
    """Rank of low-rank adapters that alone are trained, and merged at the end; 0 trains all weights."""
    lora_alpha: float = 16.0
    """Gain of the adapters is this divided by their rank (Hu et al. 2021, section 4.1)."""

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("steps", "save_every", "accumulate", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        counts = ("workers", "max_skipped", "preview_every", "evaluate_every", "warmup_steps", "lora_rank")
        for name in (*counts, "matrix_learning_rate", "weight_decay", "final_rate"):
            if not getattr(self, name) >= 0:  # a rate may be no number
                raise OptionError(f"{name} must be at least 0, not {getattr(self, name)}")
        if unknown := sorted(set(self.track) - set(TRACKERS)):
            raise OptionError(f"no tracker {', '.join(unknown)}", f"known: {', '.join(TRACKERS)}")
        for name in ("learning_rate", "clip_norm", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise OptionError(f"{name} must be positive, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")


def read_toml(path: Path) -> dict[str, Any]:
    """A recipe file as plain data.

    Raises:
        OptionError: no such file, or no valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is no valid TOML: {error}") from error
