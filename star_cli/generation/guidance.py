"""Classifier-free guidance, ramped over the scales (VAR, section 3.1 of the code base; STAR uses the same ramp)."""

from __future__ import annotations

from torch import Tensor

from star_cli.models.schedule import ScaleSchedule


def ramped_guidance(guidance: float, scale: int, schedule: ScaleSchedule) -> float:
    """Strength at one scale: none at the first, full at the last."""
    return guidance * schedule.progress(scale)


def guide(logits: Tensor, strength: float) -> Tensor:
    """(1 + t) conditional - t unconditional.

    Args:
        logits: conditional rows, then unconditional rows, (2B, l, V).
        strength: t.
    Returns:
        (B, l, V).
    """
    conditional, unconditional = logits.chunk(2)
    return ((1 + strength) * conditional).sub_(strength * unconditional)
