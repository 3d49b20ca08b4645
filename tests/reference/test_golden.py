"""Every recorded case is compared somewhere; the comparison itself can fail."""

from __future__ import annotations

import pytest
import torch

from tests.reference import test_stable, test_star, test_var, test_vqvae
from tests.reference.golden import COPIES, FULL, Golden

COMPARED = {
    "mask_schedule",
    "phi_selection",
    "rope",
    "sampling",
    "star_forward_token_drop",
    "upscale",
    "vae_base",  # weights alone, used by every case with images
    *test_vqvae.CASES,
    *test_var.CASES,
    *test_stable.CASES,
    *(f"star_forward_{name}" for name in test_star.FORWARD),
    *(f"star_infer_{name}" for name in test_star.INFER),
}


def test_every_recorded_case_is_compared() -> None:
    if not FULL.is_dir():
        pytest.skip("the full reference set is not here (see STAR_REFERENCE)")
    assert {path.stem for path in FULL.glob("*.json")} == COMPARED


def test_the_copies_are_few_and_known() -> None:
    assert {path.stem for path in COPIES.glob("*.json")} <= COMPARED
    assert sum(path.stat().st_size for path in COPIES.iterdir()) < 3.6e6


def test_comparison_notices_a_deviation_a_shape_and_a_gap() -> None:
    case = Golden("made up", {"out/a/0": torch.zeros(2), "out/a/1": torch.ones(2, dtype=torch.int64)}, {})
    with pytest.raises(AssertionError, match=r"a/0 is off by 1\.00e-03"):
        case.compare("a/0", torch.full((2,), 1e-3), "logits")
    with pytest.raises(AssertionError, match="a/0 is off by nan"):
        case.compare("a/0", torch.full((2,), torch.nan), "logits")
    with pytest.raises(AssertionError, match="a/1 is off by"):
        case.compare("a/1", torch.tensor([1, 2]), "tokens")
    with pytest.raises(AssertionError, match=r"a/0 is \(1,\), not \(2,\)"):
        case.compare("a/0", torch.zeros(1), "logits")
    with pytest.raises(AssertionError, match="never compared"):
        case.finish("a")
    with pytest.raises(AssertionError, match="records nothing"):
        case.finish("b")
