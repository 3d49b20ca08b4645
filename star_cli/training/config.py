"""Settings of the training loop, and reading a recipe file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from star_cli.errors import OptionError
from star_cli.models.config import Config


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
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of matrix products and convolutions in training (autocast)."""
    save_every: int = 250
    """Steps between checkpoints."""
    preview_every: int = 0
    """Steps between preview pictures; 0 draws none."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.save_every < 1:
            raise OptionError("steps and save_every must be at least 1")
        if not self.learning_rate > 0:
            raise OptionError(f"learning_rate must be positive, not {self.learning_rate}")
        if not self.matrix_learning_rate >= 0:
            raise OptionError(f"matrix_learning_rate must be at least 0, not {self.matrix_learning_rate}")
        if not 0 <= self.ema_decay < 1:
            raise OptionError(f"ema_decay must be at least 0 and below 1, not {self.ema_decay}")


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
