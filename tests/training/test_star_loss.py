"""The weighted loss against its formula, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from star_cli.models.schedule import ScaleSchedule
from star_cli.training.star_loss import scale_loss

SCHEDULE = ScaleSchedule((1, 2, 4), 3)
ROWS, CODES = 3, 16


def logits_and_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        2 * torch.randn(ROWS, SCHEDULE.length, CODES, generator=generator),
        torch.randint(CODES, (ROWS, SCHEDULE.length), generator=generator),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("gone", [(), (5, 9, 20)])
@pytest.mark.parametrize("weight", ["token", "side"])
def test_loss_and_figures_are_means_over_the_tokens_that_take_part(
    weight: Any, gone: tuple[int, ...], smoothing: float
) -> None:
    logits, tokens = logits_and_tokens()
    keep = torch.ones(SCHEDULE.length, dtype=torch.bool)
    keep[list(gone)] = False
    loss, figures = scale_loss(logits[:, keep], tokens, SCHEDULE, keep if gone else None, weight, smoothing)
    surprise = -logits.double().log_softmax(-1)  # (B, L, V)
    true = surprise.gather(-1, tokens[..., None])[..., 0]
    losses = (1 - smoothing) * true + smoothing * surprise.mean(-1)
    right = (logits.argmax(-1) == tokens).double()
    of_scale, shares = [], []
    for scale, side in enumerate(SCHEDULE.sides):
        part = [token for token in range(SCHEDULE.offsets[scale], SCHEDULE.offsets[scale + 1]) if token not in gone]
        of_scale.append(losses[:, part].mean().item())
        shares.append(side if weight == "side" else len(part))
        assert figures[f"loss side {side}"].item() == pytest.approx(of_scale[-1], rel=1e-5)
        assert figures[f"side {side}"].item() == pytest.approx(right[:, part].mean().item(), rel=1e-5)
    expected = sum(share * mean for share, mean in zip(shares, of_scale, strict=True)) / sum(shares)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert figures["per token"].item() == pytest.approx(losses[:, keep].mean().item(), rel=1e-5)


def test_loss_of_a_batch_is_the_mean_of_its_rows() -> None:
    logits, tokens = logits_and_tokens()
    whole, _ = scale_loss(logits, tokens, SCHEDULE, weight="side")
    alone = [scale_loss(logits[[row]], tokens[[row]], SCHEDULE, weight="side")[0].item() for row in range(ROWS)]
    assert whole.item() == pytest.approx(sum(alone) / ROWS, rel=1e-5)
