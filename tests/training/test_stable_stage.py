"""The stable head's stage: it learns from visible tokens, and the rest of the model stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.errors import OptionError, TrainingError
from star_cli.models.transformer import StarTransformer
from star_cli.pipeline import StarPipeline
from star_cli.training.config import LoopConfig
from star_cli.training.distributed import Processes, wrap
from star_cli.training.loop import train_stage
from star_cli.training.settings import compare
from star_cli.training.stable import StableStage, StableStageConfig, add_stable_head, stable_loss
from star_cli.training.star_batches import Portion
from star_cli.training.star_sources import PixelBatches
from tests.models.builders import lively
from tests.training.pictures import Pictures
from tests.training.test_star_options import shares_of
from tests.training.test_star_stage import MODEL, SCHEDULES, first_batch_at, make_source

LOOP = LoopConfig(
    steps=4, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5, precision="float32", save_every=2, preview_every=4
)


def make_stage(pipeline: StarPipeline, seed: int = 0, **options: Any) -> StableStage:
    torch.manual_seed(0)
    model = add_stable_head(lively(StarTransformer(MODEL)), first_scale=1, blocks=1, version="new")
    source = make_source()
    source.portions = tuple(Portion(resolution=pixels, batch_size=2, share=1.0) for pixels in SCHEDULES)
    config = StableStageConfig(**options)
    return StableStage(model, config, SCHEDULES, pipeline.vqvae, pipeline.text_encoder, source, seed=seed)


def backbone(model: StarTransformer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("stable.")}


def test_the_head_learns(tiny_pipeline: StarPipeline) -> None:
    stage, batch = make_stage(tiny_pipeline), first_batch_at(32)
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss, _ = stage.loss(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    silent = [name for name, one in stage.named_parameters() if one.grad is None or not one.grad.any()]
    assert silent == []


def test_training_leaves_the_blocks_as_they_are_to_the_last_bit(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    stage = make_stage(tiny_pipeline)
    before, head = backbone(stage.transformer), stage.head.head.weight.detach().clone()
    train_stage(stage, LOOP, tmp_path)
    after = backbone(stage.transformer)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(stage.head.head.weight, head)
    assert {path.name for path in tmp_path.glob("*.png")} == {"preview-000004-32.png", "preview-000004-64.png"}
    kept = {key.removeprefix("head.") for key in stage.state_dict()}
    assert kept == set(stage.head.state_dict()), "a checkpoint holds the head alone"


def test_what_is_visible_follows_from_seed_step_and_row(tiny_pipeline: StarPipeline) -> None:
    one, again, other = (make_stage(tiny_pipeline, seed) for seed in (1, 1, 2))
    batch = first_batch_at(32)
    loss = one.loss(batch, 5)[0].item()
    assert again.loss(batch, 5)[0].item() == loss
    assert again.loss(batch, 6)[0].item() != loss
    assert other.loss(batch, 5)[0].item() != loss
    mean = sum(one.loss(share, 5)[0].item() for share in shares_of(batch)) / len(batch.tokens)
    assert mean == pytest.approx(loss, rel=1e-5)


def test_only_hidden_tokens_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 16, generator=generator)
    tokens = torch.randint(16, (2, 5), generator=generator)
    visible = torch.tensor([[True, False, False, True, False], [True] * 5])
    surprise = -logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    loss = stable_loss(logits, tokens, visible, 9, "hidden")
    assert loss.item() == pytest.approx(surprise[0, [1, 2, 4]].sum().item() / 5 / 2, rel=1e-5)


def test_codes_of_hidden_tokens_are_not_seen(tiny_pipeline: StarPipeline) -> None:
    stage, seen = make_stage(tiny_pipeline), []
    stage.head.code_to_width.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    batch = first_batch_at(32)
    _, metrics = stage.loss(batch, 0)
    (codes,) = seen  # (B, l, Z)
    shown = codes.any(-1)  # no code of this codebook is all zeros
    true = tiny_pipeline.vqvae.quantizer.codebook(batch.tokens[:, 1:])
    assert torch.equal(codes[shown], true[shown])
    assert shown.any()
    assert not shown.all()
    assert set(metrics) == {"per token", "side 2", "loss side 2", "side 4", "loss side 4"}
    assert stage.tokens(batch, 0) == 3 * 20


def test_a_head_is_added_without_touching_the_model() -> None:
    model = lively(StarTransformer(MODEL))
    wider = add_stable_head(model, first_scale=2, blocks=2)
    assert model.stable is None
    assert wider.config == replace(MODEL, stable_head=True, stable_from=2, stable_blocks=2)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in backbone(wider).items())
    assert not any(parameter.is_meta for parameter in wider.parameters())
    other = add_stable_head(wider, first_scale=1, blocks=1)
    assert other.stable is not None
    assert len(other.stable.blocks) == 1


def test_what_cannot_be_is_refused(tiny_pipeline: StarPipeline) -> None:
    parts = (SCHEDULES, tiny_pipeline.vqvae, tiny_pipeline.text_encoder, make_source())
    with pytest.raises(OptionError, match="these weights have no head for stable sampling"):
        StableStage(StarTransformer(MODEL), StableStageConfig(), *parts)
    late = add_stable_head(StarTransformer(MODEL), first_scale=3)
    with pytest.raises(OptionError, match="stable_from 3 refines none of the 3 scales at 32 px"):
        StableStage(late, StableStageConfig(), *parts)
    with pytest.raises(OptionError, match="the published loss has no label smoothing"):
        StableStageConfig(loss="published", label_smoothing=0.1)
    batch = first_batch_at(32)
    with pytest.raises(OptionError, match="a batch of 1 scales holds none from stable_from 1 on"):
        make_stage(tiny_pipeline).loss(replace(batch, scales=1, tokens=batch.tokens[:, :1]), 0)


def test_shares_of_the_weights_are_refused(tiny_pipeline: StarPipeline) -> None:
    """The blocks would compute with the head outside the shares, which then learns nothing."""
    stage, two = make_stage(tiny_pipeline), Processes(torch.device("cpu"), 0, 2)
    with pytest.raises(OptionError, match="stage stable needs its weights whole and in place") as caught:
        wrap(stage, replace(LOOP, parallel="fsdp", device="cpu"), two)
    assert caught.value.hint == 'set loop.parallel = "ddp"'


def test_the_model_and_its_scales_may_not_change_on_the_way(tiny_pipeline: StarPipeline) -> None:
    stage, other = make_stage(tiny_pipeline), make_stage(tiny_pipeline)
    model = add_stable_head(StarTransformer(replace(MODEL, rope_norm=32.0)), first_scale=1, blocks=1, version="new")
    other = StableStage(model, stage.config, SCHEDULES, tiny_pipeline.vqvae, tiny_pipeline.text_encoder, stage.source)
    with pytest.raises(TrainingError, match=r"what changed: model.rope_norm 64.0 -> 32.0$"):
        compare(stage.settings(), other.settings())
    assert stage.settings()["resolutions"] == {"32": [[1, 2, 4], 0], "64": [[1, 2, 4, 8], 3]}


def test_pictures_that_cannot_be_read_are_counted(tiny_pipeline: StarPipeline) -> None:
    stage = make_stage(tiny_pipeline)
    portions = [Portion(resolution=32, batch_size=4, share=1.0)]
    stage.source = PixelBatches(Pictures(4, broken=[1]), SCHEDULES, portions, 0.1, 0)
    assert stage.loss(stage.source.batch(0), 0)[1]["unreadable"] == 1
