"""Top-k and top-p filters equal the published ones."""

import pytest
import torch

from star_cli.generation.filtering import filter_logits
from tests.reference.golden import golden

PROBABILITY = 1e-6
TIED_ROWS = [(0, 0), (1, 2)]


@pytest.mark.parametrize("index", range(13))
def test_filtered_distribution(index: int):
    case = golden("sampling")
    values = case.facts["filter_cases"][index]
    ours = filter_logits(case["in/logits"], values["top_k"], values["top_p"])
    kept, expected = ours.isfinite(), case[f"out/{index}/kept"].bool()
    free = torch.ones(kept.shape[:2], dtype=torch.bool)
    if values["top_p"] > 0:  # which of several tied codes survive top-p is up to the sort; how many is not
        for row in TIED_ROWS:
            free[row] = False
            assert kept[row].sum() == expected[row].sum()
    assert torch.equal(kept[free], expected[free])
    difference = (ours.softmax(-1)[free] - case[f"out/{index}/probs"][free]).abs().max()
    assert difference <= PROBABILITY
