"""Two stages small enough for tests: a line, and a transformer on made-up pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.models.condition import TextCondition
from star_cli.models.config import TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.training.config import LoopConfig
from star_cli.training.stage import BatchSource, Stage

LOOP = LoopConfig(steps=7, learning_rate=1e-2, warmup_steps=2, ema_decay=0.9, precision="float32", save_every=1)
SCHEDULE = ScaleSchedule((1, 2, 4))
MODEL = TransformerConfig(
    depth=2, width=32, heads=2, codebook_size=16, code_dim=8, levels=3, text_width=16, mlp_ratio=2.0
)


class Numbers(BatchSource):
    """Points on a line; the batch follows from the step."""

    def batch(self, step: int) -> Any:
        points = torch.rand(16, 1, generator=torch.Generator().manual_seed(step))
        return points, 3 * points - 1


class Line(Stage):
    """Learns the line; draws noise from the global generator, as dropout would. `at_step` is called with each step."""

    name = "line"

    def __init__(self, at_step: Callable[[int], object] = lambda step: None, noise: float = 0.01) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source = Numbers()
        self.layer = nn.Linear(1, 1)
        self.at_step, self.noise = at_step, noise

    def hidden_matrices(self) -> list[nn.Parameter]:
        return [self.layer.weight]

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        self.at_step(step)
        points, wanted = batch
        noisy = points + self.noise * torch.randn_like(points)
        return (self.layer(noisy) - wanted).square().mean(), {}


class Infinite(Line):
    """Its loss is infinite at some steps."""

    def __init__(self, steps: range = range(3, 4)) -> None:
        super().__init__()
        self.steps = steps

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        loss, metrics = super().loss(batch, step)
        return (loss * torch.inf if step in self.steps else loss), metrics


@dataclass(frozen=True)
class PictureBatch:
    """Tokens, teacher input and text features of B pictures."""

    tokens: Tensor
    teacher_input: Tensor
    condition: TextCondition
    note: str = "the same for all rows"


class Pictures(BatchSource):
    """Made-up pictures, `rows` a batch."""

    def __init__(self, rows: int = 6):
        self.rows = rows

    def batch(self, step: int) -> PictureBatch:
        draw = torch.Generator().manual_seed(step)
        states = torch.randn(self.rows, 5, MODEL.text_width, generator=draw)
        condition = TextCondition(states.mean(1), states, torch.ones(self.rows, 5, dtype=torch.bool))
        length, first = SCHEDULE.length, SCHEDULE.offsets[1]
        tokens = torch.randint(MODEL.codebook_size, (self.rows, length), generator=draw)
        return PictureBatch(tokens, torch.randn(self.rows, length - first, MODEL.code_dim, generator=draw), condition)


class Painter(Stage):
    """The transformer on made-up pictures. `at_step` is called with each step."""

    name = "painter"

    def __init__(self, rows: int = 6, at_step: Callable[[int], object] = lambda step: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.source = Pictures(rows)
        self.transformer = StarTransformer(MODEL)
        self.at_step = at_step

    def units(self) -> list[nn.Module]:
        return list(self.transformer.blocks)

    def adapted(self) -> nn.Module:
        return self.transformer

    def preview(self, path: Path) -> None:
        """The first logit of the first token, as text: enough to see which weights drew it."""
        batch = self.source.batch(0)
        logits = self.transformer(self.transformer.prompt(batch.condition), batch.teacher_input, SCHEDULE)
        path.write_text(f"{logits.flatten()[0].item():.6f}", encoding="utf-8")

    def tokens(self, batch: PictureBatch, step: int) -> int:
        return batch.tokens.numel()

    def loss(self, batch: PictureBatch, step: int) -> tuple[Tensor, dict[str, Any]]:
        self.at_step(step)
        logits = self.transformer(self.transformer.prompt(batch.condition), batch.teacher_input, SCHEDULE)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten())
        return loss, {"right": (logits.detach().argmax(-1) == batch.tokens).float().mean()}


def weights(stage: nn.Module) -> list[Tensor]:
    """A copy of every parameter."""
    return [parameter.detach().clone() for parameter in stage.parameters()]


def equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules have the same weights to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
