"""What is trained: the contract between a stage and the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from star_cli.models.config import Config
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.batches import count_rows, shard
from star_cli.training.ranks import world


class BatchSource(ABC):
    """Makes the batch of any step, the same one every time. Runs in a worker process, so it must be picklable."""

    reads_pictures: bool = False
    """Its batches hold pictures of a data set, some of which may be unreadable and have others in their place."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The batch of one step."""

    def part(self, step: int, rank: int, world: int) -> tuple[Any, int]:
        """Rows rank::world of a step's batch, and how many rows the whole batch has.

        A source whose rows are dear to make may make these alone.

        Raises:
            OptionError: there are fewer rows than processes.
        """
        batch = self.batch(step)
        return shard(batch, rank, world), count_rows(batch)

    def settings(self) -> dict[str, Any]:
        """Plain data that decides its batches, and that a resumed run must share."""
        return {}


class Stage(nn.Module, ABC):
    """What is trained, on what, by which loss. Its parameters and buffers are what a checkpoint holds."""

    name: str
    source: BatchSource
    shards: bool = True
    """The loss is a mean over the batch's rows, so several processes, or parts of a batch, may share them. Where it is
    not, every process computes the whole batch, and the first one's weights are the result."""
    leaves_unused: bool = False
    """In some steps the loss does not depend on every parameter."""
    needs_whole: bool = False
    """It changes its weights by hand, or computes with them through a model outside it, so each process must hold all
    of them: DDP, not FSDP, which learns on a copy in shares."""
    opponent_rate: float = 0.0
    """Learning rate of the opponent after warm-up; it takes the same course as the loop's."""
    _frozen: tuple[Any, ...] = ()
    """Models that help but do not learn; a tuple keeps them out of the stage's parameters."""

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        """The loss of one batch; what DDP and FSDP wrap."""
        loss, metrics = self.loss(batch, step)
        return loss, {name: value.detach() if isinstance(value, Tensor) else value for name, value in metrics.items()}

    @abstractmethod
    def loss(self, batch: Any, step: int) -> tuple[Tensor, Any]:
        """The loss of one batch, and figures worth showing by name, floats or scalar tensors. Called under autocast.

        With an opponent it is the sum of both sides' losses, each made so that its gradients reach its own side alone.
        """

    def opponent(self) -> nn.Module | None:
        """A part that learns against the rest, such as a discriminator: by an optimiser of its own, clipped apart."""
        return None

    def after_step(self, step: int) -> None:
        """Move what moves without gradients, once all parts of a step's batch went through; also when it is skipped."""

    @property
    def is_judged(self) -> bool:
        """Is there anything that `evaluate` can judge it by?"""
        return False

    def evaluate(self) -> dict[str, float]:
        """Figures of held-out data; called in evaluation mode, without autocast, in the first process alone."""
        return {}

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Matrices from features to features, which Muon may learn: not embeddings, not the head."""
        return []

    def undecayed(self) -> list[nn.Parameter]:
        """Of more than one dimension, and yet not pulled towards zero by AdamW."""
        return []

    def set_anew(self) -> list[nn.Parameter]:
        """Parameters that the last step replaced by other ones: their moving averages begin again with these."""
        return []

    def preview(self, path: Path) -> None:
        """Draw what the stage can do so far, as a PNG."""

    # -- where and how it is computed -------------------------------------------------------------------------------

    def to_device(self, device: torch.device | str) -> None:
        """Move what learns and what helps."""
        self.to(device)
        for part in self._frozen:
            if isinstance(part, nn.Module):
                part.to(device)

    @property
    def can_checkpoint(self) -> bool:
        """Whether a part of the stage can compute its activations again in the backward pass."""
        return any(hasattr(module, "set_checkpointing") for module in self.children())

    def set_checkpointing(self, on: bool) -> None:
        """Compute activations again in the backward pass, or keep them."""
        for module in self.children():
            if hasattr(module, "set_checkpointing"):
                module.set_checkpointing(on)  # type: ignore[operator]  # a Module's attributes are Any

    def units(self) -> list[nn.Module]:
        """Modules of which only one need be whole at a time (FSDP), and which are compiled one by one."""
        return []

    def adapted(self) -> nn.Module | None:
        """The module whose linear layers may take low-rank adapters; None: there is none."""
        return None

    # -- figures ----------------------------------------------------------------------------------------------------

    @cached_property
    def unreadable(self) -> dict[str, None]:
        """Names of the pictures that could not be read so far: a set that keeps the order."""
        return {}

    def unreadable_figure(self, names: Iterable[str]) -> dict[str, float]:
        """How many pictures could not be read so far, those of a batch included; nothing where none are read."""
        if not self.source.reads_pictures:
            return {}
        self.unreadable.update(dict.fromkeys(names))
        # the loop takes means over processes, and each knows those of its own rows
        return {"unreadable": float(len(self.unreadable) * (world() if self.shards else 1))}

    def tokens(self, batch: Any, step: int) -> int:
        """Tokens that the loss of a batch counts in a step; 0 where it counts none."""
        return 0

    def flops(self, batch: Any, step: int) -> float | None:
        """Floating-point operations that a step asks for, forward and backward; None where that is not known."""
        return None

    def settings(self) -> dict[str, Any]:
        """Plain data that a resumed run must share with the one it goes on with."""
        config = getattr(self, "config", None)
        own = {"stage": config.to_dict()} if isinstance(config, Config) else {}
        return {**own, "data": self.source.settings()}


def model_settings(model: Config, schedules: Mapping[int, ScaleSchedule]) -> dict[str, Any]:
    """What a resumed run must share of the model: tensors of the same shapes may compute something else."""
    scales = {str(resolution): [list(each.sides), each.first_level] for resolution, each in schedules.items()}
    return {"model": model.to_dict(), "resolutions": scales}
