"""The cache of shapes as tokens: made once, read again, and made again where it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from star_cli.data import tokens
from star_cli.data.tokens import scene_tokens
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE
from tests.conftest import TINY_SCHEDULES, TINY_VQVAE


@pytest.fixture
def vqvae() -> MultiScaleVQVAE:
    torch.manual_seed(0)
    return MultiScaleVQVAE(TINY_VQVAE).eval()


def test_parts_are_made_once(vqvae: MultiScaleVQVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PART", 2)
    steps: list[tuple[int, int]] = []
    made = scene_tokens(vqvae, TINY_SCHEDULES[32], 32, 0, 5, tmp_path, lambda *step: steps.append(step))
    assert (made.shape, made.dtype) == ((5, TINY_SCHEDULES[32].length), torch.int16)
    assert steps == [(2, 5), (4, 5), (5, 5)]
    monkeypatch.setattr(tokens, "_encode", None)  # nothing is made again
    assert torch.equal(scene_tokens(vqvae, TINY_SCHEDULES[32], 32, 0, 5, tmp_path), made)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("kept", [0, 5, 60, -3])
def test_a_part_that_is_cut_off_is_made_again(vqvae: MultiScaleVQVAE, tmp_path: Path, kept: int) -> None:
    made = scene_tokens(vqvae, TINY_SCHEDULES[32], 32, 0, 3, tmp_path)
    (part,) = tmp_path.iterdir()
    whole = part.read_bytes()
    part.write_bytes(whole[:kept])
    assert torch.equal(scene_tokens(vqvae, TINY_SCHEDULES[32], 32, 0, 3, tmp_path), made)
    assert part.read_bytes() == whole


def test_a_part_with_something_else_in_it_is_made_again(vqvae: MultiScaleVQVAE, tmp_path: Path) -> None:
    made = scene_tokens(vqvae, TINY_SCHEDULES[32], 32, 0, 3, tmp_path)
    (part,) = tmp_path.iterdir()
    for held in ({"other": made}, {"tokens": made[:2].clone()}, {"tokens": made.float()}):
        save_file(held, part)
        assert torch.equal(scene_tokens(vqvae, TINY_SCHEDULES[32], 32, 0, 3, tmp_path), made)


def test_a_codebook_beyond_16_bits_keeps_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    large = MultiScaleVQVAE(replace(TINY_VQVAE, codebook_size=2**15 + 1)).eval()
    last = torch.full((2, 1), 2**15)
    monkeypatch.setattr(large.quantizer, "encode_scales", lambda *_: [(last, None)])
    for _ in ("made", "read"):
        found = scene_tokens(large, ScaleSchedule((1,)), 32, 0, 2, tmp_path)
        assert found.tolist() == last.tolist()
        monkeypatch.setattr(tokens, "_encode", None)  # nothing is made again
