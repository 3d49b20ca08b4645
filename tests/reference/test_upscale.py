"""Level rows and learned positions move to a longer schedule as in the published code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from star_cli.models.config import TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.models.upscale import move_to_schedule
from tests.reference.golden import Golden, golden, uncovered

RUNS = 4


def before(case: Golden, run: dict[str, Any]) -> StarTransformer:
    """A model whose recorded parts are those of the run."""
    source, state = ScaleSchedule(tuple(run["old_patch_nums"])), case.state(f"in/{run['index']}/")
    is_learned = "pos_1LC" in state
    width, code_dim = state["word_embed.weight"].shape
    model = StarTransformer(
        TransformerConfig(
            depth=1,
            width=width,
            heads=2,
            codebook_size=4,
            code_dim=code_dim,
            levels=len(source),
            text_width=8,
            position="learned" if is_learned else "rope",
            learned_positions=source.length if is_learned else 0,
            modulation="level" if run["shared_aln"] else "none",
        )
    )
    with torch.no_grad():
        model.code_to_width.weight.copy_(state["word_embed.weight"])
        model.level_embedding.weight.copy_(state["lvl_embed.weight"])
        if is_learned:
            model.position_embedding.copy_(state["pos_1LC"])
    return model


@pytest.mark.parametrize("index", range(RUNS))
def test_known_rows_are_kept_and_new_ones_begin_as_published(index: int) -> None:
    case = golden("upscale")
    run = case.facts["runs"][index]
    model = before(case, run)
    moved = move_to_schedule(model, ScaleSchedule(tuple(run["new_patch_nums"])), torch.Generator().manual_seed(0))
    ours = {"word_embed.weight": moved.code_to_width.weight, "lvl_embed.weight": moved.level_embedding.weight.detach()}
    if run.get("pos_1LC_rows_copied"):
        ours["pos_1LC"] = moved.position_embedding.detach()
    random_rows = {"pos_1LC": run.get("pos_1LC_rows_new", [0, 0])}
    if not run["shared_aln"]:
        random_rows["lvl_embed.weight"] = run["lvl_embed_rows_new"]
    for key, tensor in ours.items():
        first, last = random_rows.get(key, [0, 0])
        rows, recorded = tensor.view(-1, tensor.shape[-1]).clone(), case[f"out/{index}/{key}"]
        if last - first > 10:  # random draws: alike in size, no more
            assert rows[first:last].std() == pytest.approx((1 / 3 / rows.shape[1]) ** 0.5, rel=0.1)
        rows[first:last] = recorded.view(-1, tensor.shape[-1])[first:last]
        case.compare(f"{index}/{key}", rows.view(tensor.shape), "copied")
    case.finish(str(index))
    same = {name for name, tensor in moved.state_dict().items() if tensor.shape == model.state_dict()[name].shape}
    assert all(torch.equal(moved.state_dict()[name], model.state_dict()[name]) for name in same)


def test_no_recorded_run_is_left_uncompared() -> None:
    case = golden("upscale")
    assert len(case.facts["runs"]) == RUNS
    assert uncovered(case, *map(str, range(RUNS))) == []
