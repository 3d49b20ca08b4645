"""Stage 0: batches of hard negatives, a loss that falls, and a text tower that comes back from its folder."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from star_cli.data import shapes
from star_cli.errors import OptionError
from star_cli.models.text import load_text_encoder
from star_cli.training import reading
from star_cli.training.clip import (
    ClipStageConfig,
    build_clip,
    clip_batch,
    clip_loss,
    pooled_text,
    retrieval_accuracy,
    save_text_encoder,
)
from star_cli.training.clip_stage import ClipStage
from star_cli.training.reading import Reader, scene_labels
from tests.training.pictures import Pictures

TINY = ClipStageConfig(
    embed_width=16,
    text_width=16,
    text_heads=2,
    text_layers=1,
    image_size=32,
    vision_width=32,
    vision_layers=1,
    families=4,
    variants=2,
    reading_share=0.0,
)


def test_batch_is_decided_by_seed_and_step_alone() -> None:
    first = clip_batch(TINY, step=3, seed=1)
    clip_batch(TINY, step=4, seed=1)
    again = clip_batch(TINY, step=3, seed=1)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, clip_batch(TINY, step=4, seed=1).tokens)
    assert not torch.equal(first.tokens, clip_batch(TINY, step=3, seed=2).tokens)


def test_batch_holds_pairs_in_the_shapes_of_the_towers() -> None:
    batch = clip_batch(TINY, step=0, seed=0)
    assert batch.images.shape == (12, 3, 32, 32)
    assert batch.tokens.shape == (12, 48)
    assert batch.images.min() >= -1
    assert batch.images.max() <= 1


def test_no_picture_and_no_caption_comes_twice_in_a_batch() -> None:
    batch = clip_batch(replace(TINY, families=40), step=0, seed=0)
    assert len({tuple(row) for row in batch.tokens.tolist()}) == len(batch.tokens)
    assert len(batch.images.flatten(1).unique(dim=0)) == len(batch.images)


def test_captions_fit_the_context_of_the_shipped_tower() -> None:
    tokens = torch.cat([clip_batch(ClipStageConfig(image_size=8), step, seed=0).tokens for step in range(3)])
    assert (tokens[:, -1] == 0).all()


def test_family_differs_little_from_its_first_picture() -> None:
    images = clip_batch(replace(TINY, families=20), step=0, seed=0).images.unflatten(0, (20, 3))
    within = (images[:, 0] - images[:, 1]).abs().mean()
    between = (images[:-1, 0] - images[1:, 0]).abs().mean()
    assert within < between


def test_training_seeds_are_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    sample = shapes.sample
    monkeypatch.setattr(shapes, "sample", lambda seed: (seeds.append(seed), sample(seed))[1])
    clip_batch(TINY, step=0, seed=0)
    assert max(seeds) < shapes.HELD_OUT_SEED
    seeds.clear()
    torch.manual_seed(0)
    retrieval_accuracy(build_clip(TINY), TINY, families=3)
    assert min(seeds) >= shapes.HELD_OUT_SEED


def test_loss_falls() -> None:
    torch.manual_seed(0)
    model = build_clip(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = clip_batch(TINY, step=0, seed=0)
    losses = []
    for _ in range(12):
        loss, metrics = clip_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert losses[-1] < math.log(len(batch.tokens))  # better than chance
    assert set(metrics) == {"accuracy", "gain"}


def test_loss_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model, batch = build_clip(TINY), clip_batch(TINY, step=0, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = clip_loss(model, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(clip_loss(model, batch)[0].item(), rel=0.05)


def test_retrieval_is_a_share_and_repeats() -> None:
    torch.manual_seed(0)
    model = build_clip(TINY)
    first = retrieval_accuracy(model, TINY, families=4)
    assert set(first) == {"text_to_image", "image_to_text", "family"}
    assert all(0 <= share <= 1 for share in first.values())
    assert model.training
    assert retrieval_accuracy(model, TINY, families=4) == first


def test_the_stage_is_judged_by_held_out_scenes() -> None:
    torch.manual_seed(0)
    stage = ClipStage(TINY, seed=0)
    assert stage.is_judged
    found = stage.eval().evaluate()
    assert found == {f"held-out {name}": share for name, share in retrieval_accuracy(stage.clip, TINY).items()}
    assert not ClipStage(TINY, 0, Pictures(4)).is_judged


def test_saved_text_encoder_reads_as_the_config_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_clip(TINY).eval()
    save_text_encoder(model, TINY, tmp_path / "text_encoder")
    encoder = load_text_encoder(TINY.text_encoder_config, tmp_path)
    prompts = ["a small red circle on the left", ""]
    with torch.no_grad():
        expected = model.encode_text(encoder.tokenizer(prompts, context_length=TINY.max_tokens))
        pooled = encoder.encode(prompts).pooled @ model.text_projection
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-2)  # the folder holds float16


def test_shipped_text_tower_fits_in_eleven_megabytes(tmp_path: Path) -> None:
    config = ClipStageConfig()
    save_text_encoder(build_clip(config), config, tmp_path)
    assert (tmp_path / "open_clip_model.safetensors").stat().st_size < 11e6


def test_config_comes_back_from_plain_data() -> None:
    assert ClipStageConfig.from_dict(TINY.to_dict()) == TINY
    for change in ({"reading_share": 5.0}, {"reading_share": -0.1}, {"reading_batch_size": 0}):
        with pytest.raises(OptionError, match=next(iter(change))):
            ClipStageConfig.from_dict(change)
    with pytest.raises(OptionError, match="divisible"):
        ClipStageConfig(text_width=50)


def test_some_batches_are_captions_alone() -> None:
    config = replace(TINY, reading_share=0.5, reading_batch_size=5)
    batches = [clip_batch(config, step, seed=0) for step in range(12)]
    alone = [batch for batch in batches if batch.images is None]
    assert 0 < len(alone) < len(batches)
    assert all(batch.tokens.shape == (5, 48) and batch.labels.shape == (5, 16) for batch in alone)
    reader, model = Reader(16), build_clip(config)
    loss, metrics = clip_loss(model, alone[0], reader)
    loss.backward()
    assert set(metrics) == {"read"}
    assert model.token_embedding.weight.grad is not None


def test_pooled_text_is_what_open_clip_encodes() -> None:
    torch.manual_seed(0)
    model, tokens = build_clip(TINY).eval(), clip_batch(TINY, step=0, seed=0).tokens
    with torch.no_grad():
        torch.testing.assert_close(pooled_text(model, tokens), model.encode_text(tokens), rtol=0, atol=1e-6)


def test_reading_loss_knows_what_a_scene_shows() -> None:
    batch = clip_batch(TINY, step=0, seed=0)
    assert batch.labels.shape == (12, 16)
    scene = shapes.Scene("grey", (shapes.Thing("circle", "red", "small", 0.25, 0.5),))
    labels = scene_labels([scene])[0].tolist()
    assert labels[0] == list(shapes.BACKGROUNDS).index("grey")
    assert labels[1:4] == [1, 1, 1]  # the first shape, colour and size
    assert labels[6:] == [0] * 10  # two empty slots
    reader = Reader(16)
    loss, metrics = clip_loss(build_clip(TINY), batch, reader)
    loss.backward()
    assert reader.answers.weight.grad is not None
    assert 0 <= metrics["read"] <= 1
    alone, _ = clip_loss(build_clip(TINY), batch)
    assert alone < loss


def test_reader_that_knows_the_answers_reads_everything() -> None:
    labels = scene_labels([shapes.scene(seed) for seed in range(6)])
    reader = Reader(6)
    with torch.no_grad():
        reader.answers.weight.zero_()
        reader.answers.bias.zero_()
        first = 0
        for column, (low, high) in enumerate(reading._BOUNDS):
            for row in range(6):
                reader.answers.weight[low + labels[row, column], row] = 20.0
            assert low == first
            first = high
    loss, right = reader(torch.eye(6), labels)
    assert loss < 1e-3
    assert right == 1


def test_pictures_that_cannot_be_read_are_counted() -> None:
    torch.manual_seed(0)
    stage = ClipStage(replace(TINY, batch_size=4), 0, Pictures(8, broken=[2, 5]))
    told = [stage.loss(stage.source.batch(step), step)[1]["unreadable"] for step in range(2)]  # an epoch
    assert told[-1] == len(stage.unreadable) == 2
    assert "unreadable" not in ClipStage(TINY, 0).loss(clip_batch(TINY, 0, 0), 0)[1]
