"""The loss of stage 2: cross-entropy of every token, weighted by scale, with figures of each scale beside it.

Letters: B images, L tokens of the schedule, l of them that take part, S scales, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.models.schedule import ScaleSchedule

ScaleWeight = Literal["token", "side"]
"""Weight of a scale in the loss: its number of tokens that take part (as published), or its side: small scales count
more."""


def scale_loss(
    logits: Tensor,
    tokens: Tensor,
    schedule: ScaleSchedule,
    keep: Tensor | None = None,
    weight: ScaleWeight = "token",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Any]]:
    """Weighted cross-entropy.

    Args:
        logits: of the tokens that take part, (B, l, V).
        tokens: all true ones, (B, L).
        schedule: the scales.
        keep: which of the L tokens take part, (L,) bool; None: all. Weights are shared among these alone: with "token"
            the loss is their mean. (The published trainer sums over the batch when it leaves tokens out; here the loss
            is a mean over images either way.)
        weight: of each scale.
        label_smoothing: share of the target that is spread over all codes.
    Returns:
        The loss, a mean over images; and, as scalar tensors, the mean loss per token, and for each scale the accuracy
        ("side N") and the loss ("loss side N").
    """
    counts = token_counts(schedule, keep)
    if keep is not None:
        tokens = tokens[:, keep.to(tokens.device)]  # (B, l)
    losses = F.cross_entropy(
        logits.flatten(0, 1), tokens.flatten(), reduction="none", label_smoothing=label_smoothing
    ).view_as(tokens)
    loss = (losses * _token_weights(schedule, counts, weight).to(losses.device)).sum(1).mean()
    right = (logits.detach().argmax(-1) == tokens).float().mean(0)  # (l,)
    per_token = losses.detach().mean(0)  # (l,)
    accuracy = scale_figures(right, schedule, counts, "side")
    return loss, {"per token": per_token.mean(), **accuracy, **scale_figures(per_token, schedule, counts, "loss side")}


def overall(figures: Mapping[str, float | Tensor], schedule: ScaleSchedule) -> dict[str, float]:
    """What `scale_loss` told of whole schedules, as VAR's scaling laws have it (section 5.2).

    Returns:
        "loss", nats, and "error", share of wrong tokens: means over all tokens; "last loss" and "last error": over
        those of the last scale.
    """
    last = schedule.last_side
    sizes = zip(schedule.sides, schedule.sizes, strict=True)
    right = sum(float(figures[f"side {side}"]) * size for side, size in sizes)
    return {
        "loss": float(figures["per token"]),
        "error": 1 - right / schedule.length,
        "last loss": float(figures[f"loss side {last}"]),
        "last error": 1 - float(figures[f"side {last}"]),
    }


def token_counts(schedule: ScaleSchedule, keep: Tensor | None) -> list[int]:
    """Tokens of each scale that take part, S of them."""
    if keep is None:
        return list(schedule.sizes)
    return [int(keep[schedule.slice(scale)].sum()) for scale in range(len(schedule))]


def scale_figures(of_token: Tensor, schedule: ScaleSchedule, counts: Sequence[int], name: str) -> dict[str, Tensor]:
    """Mean of each scale, of figures (l,) in the order of the scales."""
    parts = of_token.split(list(counts))
    return {f"{name} {side}": part.mean() for side, part in zip(schedule.sides, parts, strict=True)}


def _token_weights(schedule: ScaleSchedule, counts: Sequence[int], weight: ScaleWeight) -> Tensor:
    """Weight of each token that takes part, (l,), summing to 1."""
    if weight == "token":
        return torch.full((sum(counts),), 1 / sum(counts))
    shares = torch.tensor(schedule.sides, dtype=torch.float32) / sum(schedule.sides)
    taking_part = torch.tensor(counts)
    return torch.repeat_interleave(shares / taking_part, taking_part)
