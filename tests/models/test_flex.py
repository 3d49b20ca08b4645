"""Flex attention looks where the dense block-causal mask looks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch.nn.attention.flex_attention import create_mask

from star_cli.models.flex import FlexMask, looks_back
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.tables import ScheduleTables
from tests.models.builders import SIDES, TINY, laws, placed_schedules, random_input, text, tiny_transformer


@laws
@given(placed_schedules)
def test_its_rule_is_the_block_causal_mask(schedule: ScaleSchedule) -> None:
    rule = looks_back(schedule.levels())
    mask = create_mask(rule, None, None, schedule.length, schedule.length, device="cpu")
    assert torch.equal(mask[0, 0], schedule.block_causal_mask())


def test_its_tiles_leave_out_what_no_token_of_a_tile_looks_at() -> None:
    schedule = ScaleSchedule((8, 16, 16))  # tiles of 128 tokens; scales of 64, 256 and 256
    tiles = FlexMask.of_levels(schedule.levels()).tiles
    dense = schedule.block_causal_mask()
    padded = torch.zeros(640, 640, dtype=torch.bool)
    padded[:576, :576] = dense
    looked_at = padded.view(5, 128, 5, 128).any(3).any(1)
    assert torch.equal(tiles.to_dense()[0, 0].bool(), looked_at)
    assert not looked_at.all()


def test_tokens_left_out_are_left_out_of_the_mask() -> None:
    tables, tokens = ScheduleTables(TINY), torch.tensor([0, 2, 3, 7, 20])
    mask = tables.training_mask(SIDES, tokens, torch.device("cpu"), flex=True)  # no GPU: dense
    assert isinstance(mask, torch.Tensor)
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1] * 5, [1] * 5]
    rule = create_mask(looks_back(SIDES.levels()[tokens]), None, None, 5, 5, device="cpu")
    assert torch.equal(rule[0, 0], mask)


def test_the_dense_mask_is_made_once() -> None:
    tables, every, device = ScheduleTables(TINY), slice(0, SIDES.length), torch.device("cpu")
    masks = [tables.training_mask(SIDES, every, device, flex=False) for _ in range(2)]
    assert isinstance(masks[0], torch.Tensor)
    assert isinstance(masks[1], torch.Tensor)
    assert torch.equal(masks[0], SIDES.block_causal_mask())
    assert masks[0].data_ptr() == masks[1].data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dropped", [False, True])
def test_on_a_gpu_it_gives_the_logits_and_gradients_of_the_dense_mask(dropped: bool) -> None:
    schedule = ScaleSchedule((1, 2, 4, 8, 12))
    model = tiny_transformer().cuda()  # heads 16 wide
    keep = torch.ones(schedule.length, dtype=torch.bool)
    keep[100:140] = not dropped
    given = random_input(2, schedule).cuda()
    results = []
    for flex in (False, True):
        model.flex_attention = flex
        model.zero_grad()
        logits = model(model.prompt(text(2).to("cuda")), given, schedule, keep if dropped else None)
        logits.square().mean().backward()
        results.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])
    for dense, skipping in zip(*results, strict=True):
        torch.testing.assert_close(skipping, dense, rtol=2e-3, atol=2e-4)
    assert bool(model._tables._flex_masks) != dropped
