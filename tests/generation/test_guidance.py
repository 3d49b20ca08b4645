from __future__ import annotations

import pytest
import torch

from star_cli.generation.guidance import guide, ramped_guidance
from star_cli.models.schedule import ScaleSchedule


def test_guidance_rises_evenly_from_nothing_to_full_strength() -> None:
    schedule = ScaleSchedule((1, 2, 3, 4, 5))
    assert [ramped_guidance(4.0, scale, schedule) for scale in range(5)] == [0, 1, 2, 3, 4]


def test_a_single_scale_is_not_guided() -> None:
    assert ramped_guidance(4.0, 0, ScaleSchedule((4,))) == 0


@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
def test_guided_logits_move_away_from_the_unconditional_ones(strength: float) -> None:
    conditional, unconditional = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)).unbind(0)
    guided = guide(torch.cat([conditional, unconditional]), strength)
    torch.testing.assert_close(guided, conditional + strength * (conditional - unconditional))


def test_equal_branches_are_left_as_they_are() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guide(torch.cat([logits, logits]), 4.0), logits)
