"""Stage 2: batches, loss weights, prefixes, level rows of a larger resolution; the token cache."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.data import shapes
from star_cli.data.captions import SHAPE_WORDS
from star_cli.data.tokens import scene_tokens
from star_cli.errors import OptionError, TrainingError
from star_cli.models.config import TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.pipeline import StarPipeline
from star_cli.training.config import LoopConfig
from star_cli.training.loop import train_stage
from star_cli.training.star import StarStage, StarStageConfig, initialise_head
from star_cli.training.star_batches import Portion, StarBatch, TokenSource, scenes_in_use
from star_cli.training.star_sources import PixelBatches
from tests.training.pictures import Pictures

SMALL, LARGE = ScaleSchedule((1, 2, 4)), ScaleSchedule((1, 2, 4, 8), 3)
SCHEDULES = {32: SMALL, 64: LARGE}
MODEL = TransformerConfig(depth=2, width=32, heads=2, codebook_size=16, code_dim=8, levels=7, text_width=32)
PORTIONS = (Portion(resolution=32, batch_size=3, share=1.0), Portion(resolution=64, scales=2, batch_size=2, share=1.0))


def make_source(drop_text: float = 0.0) -> TokenSource:
    generator = torch.Generator().manual_seed(0)
    cache = {
        resolution: torch.randint(16, (9, schedule.length), generator=generator, dtype=torch.int16)
        for resolution, schedule in SCHEDULES.items()
    }
    return TokenSource(cache, SCHEDULES, PORTIONS, drop_text, seed=0)


def make_stage(pipeline: StarPipeline, weight: str = "side") -> StarStage:
    torch.manual_seed(0)
    config = StarStageConfig(scenes=9, scale_weight=weight)  # type: ignore[arg-type]
    stage = StarStage(MODEL, config, SCHEDULES, pipeline.vqvae, pipeline.text_encoder, make_source())
    torch.nn.init.normal_(stage.transformer.head.weight)
    return stage


def first_batch_at(resolution: int) -> StarBatch:
    source = make_source()
    return next(batch for batch in map(source.batch, range(100)) if batch.resolution == resolution)


def test_batches_mix_the_portions_and_follow_from_the_step() -> None:
    source = make_source()
    batches = [source.batch(step) for step in range(20)]
    assert {(batch.resolution, batch.scales, tuple(batch.tokens.shape)) for batch in batches} == {
        (32, 3, (3, 21)),
        (64, 2, (2, 5)),
    }
    again = make_source().batch(7)
    assert torch.equal(again.tokens, batches[7].tokens)
    assert again.captions == batches[7].captions


def test_captions_belong_to_their_scenes_and_are_dropped_as_often_as_asked() -> None:
    captions = [caption for step in range(40) for caption in make_source(0.25).batch(step).captions]
    assert 0.1 < sum(not caption for caption in captions) / len(captions) < 0.4
    source = make_source()
    for batch in map(source.batch, range(6)):
        for tokens, caption in zip(batch.tokens, batch.captions, strict=True):
            (row,) = (source.cache[batch.resolution][:, : len(tokens)] == tokens).all(1).nonzero().flatten().tolist()
            named = {shape for shape, words in SHAPE_WORDS.items() if any(word in caption.lower() for word in words)}
            assert named == {thing.shape for thing in shapes.scene(row).things}


@pytest.mark.parametrize("weight", ["side", "token"])
def test_loss_is_the_weighted_mean_over_scales(tiny_pipeline: StarPipeline, weight: str) -> None:
    stage = make_stage(tiny_pipeline, weight)
    batch = first_batch_at(32)
    schedule = SCHEDULES[batch.resolution]
    loss, metrics = stage.loss(batch, 0)
    maps = [batch.tokens[:, schedule.slice(scale)] for scale in range(batch.scales)]
    prompted = stage.transformer.prompt(tiny_pipeline.text_encoder.encode(batch.captions))
    logits = stage.transformer(prompted, tiny_pipeline.vqvae.quantizer.teacher_input(maps, schedule), schedule)
    surprise = -logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
    of_scale = torch.stack([surprise[:, schedule.slice(scale)].mean() for scale in range(batch.scales)])
    shares = torch.tensor(schedule.sides if weight == "side" else schedule.sizes, dtype=torch.float32)
    assert loss.item() == pytest.approx((of_scale * shares / shares.sum()).sum().item(), rel=1e-4)
    assert metrics["per token"] == pytest.approx(surprise.mean().item(), rel=1e-4)


def test_a_prefix_has_the_logits_of_the_whole_schedule(tiny_pipeline: StarPipeline) -> None:
    stage = make_stage(tiny_pipeline)
    tokens = torch.randint(16, (2, LARGE.length), generator=torch.Generator().manual_seed(1))
    quantizer, prompted = (
        tiny_pipeline.vqvae.quantizer,
        stage.transformer.prompt(tiny_pipeline.text_encoder.encode(["a"] * 2)),
    )
    maps = [tokens[:, LARGE.slice(scale)] for scale in range(4)]
    whole = stage.transformer(prompted, quantizer.teacher_input(maps, LARGE), LARGE)
    prefix = LARGE.prefix(3)
    # the loss hands the whole schedule to the quantiser: phi and the side of f_hat follow from it
    short = stage.transformer(prompted, quantizer.teacher_input(maps[:3], LARGE), prefix)
    assert torch.allclose(whole[:, : prefix.length], short, atol=1e-5)


def test_training_lowers_the_loss(tiny_pipeline: StarPipeline) -> None:
    stage = make_stage(tiny_pipeline)
    batch = StarBatch(32, 3, first_batch_at(32).tokens[:2], ["a red circle", "a blue star"])
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss, _ = stage.loss(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_close_codes_begin_with_similar_rows_of_the_head() -> None:
    transformer = StarTransformer(replace(MODEL, width=256))
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(16, 8, generator=generator)
    codebook[1] = codebook[0] + 0.01
    initialise_head(transformer, codebook, [torch.tensor([[0, 1, 2, 3]], dtype=torch.int16), torch.tensor([[7]])])
    rows = transformer.head.weight
    used = [0, 1, 2, 3, 7]
    assert rows[used].square().sum(1).mean().item() == pytest.approx(1, rel=0.3)
    assert (rows[0] - rows[1]).norm() < 0.05 * (rows[0] - rows[2]).norm()
    assert rows[4:7].count_nonzero() == rows[8:].count_nonzero() == 0  # these codes came in no cache


def test_portion_that_cannot_be_is_refused() -> None:
    with pytest.raises(OptionError, match="batch_size"):
        Portion(resolution=32, batch_size=0, share=1.0)


def test_a_short_run_waits_for_no_more_scenes_than_it_draws() -> None:
    portions = (
        Portion(resolution=32, scales=2, batch_size=6, share=1.0),
        Portion(resolution=32, batch_size=2, share=2.0),
        Portion(resolution=64, batch_size=4, share=1.0),
    )
    assert scenes_in_use(portions, 20, 2048) == {32: 50, 64: 20}
    assert scenes_in_use(portions, 1, 2048) == {32: 6, 64: 4}  # a batch draws no scene twice
    assert scenes_in_use(portions, 2000, 2048) == {32: 2048, 64: 2000}


def test_token_cache_is_made_once_and_holds_the_tokens_of_its_scenes(
    tiny_pipeline: StarPipeline, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    schedule = tiny_pipeline.schedules[32]
    made = scene_tokens(tiny_pipeline.vqvae, schedule, 32, 4, 5, tmp_path, lambda *done: told.append(done))
    assert made.shape == (5, schedule.length)
    assert told == [(5, 5)]
    (part,) = tmp_path.iterdir()
    written = part.stat().st_mtime_ns
    assert torch.equal(scene_tokens(tiny_pipeline.vqvae, schedule, 32, 4, 5, tmp_path), made)
    assert part.stat().st_mtime_ns == written
    image = shapes.render_tensor(shapes.sample(6)[0], 32)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latent = tiny_pipeline.vqvae.encode(image.contiguous(memory_format=torch.channels_last))
    tokens = torch.cat([tokens for tokens, _ in tiny_pipeline.vqvae.quantizer.encode_scales(latent, schedule)], dim=1)
    assert (tokens[0] == made[2]).float().mean() > 0.9  # bfloat16 may decide a tie the other way in another batch


# -- held-out pictures ------------------------------------------------------------------------------------------------


def judged_stage(pipeline: StarPipeline, held_out: Pictures | None, **config: Any) -> StarStage:
    torch.manual_seed(0)
    stage = StarStage(
        replace(MODEL, codebook_size=pipeline.vqvae.config.codebook_size),
        StarStageConfig(scenes=9, **config),
        SCHEDULES,
        pipeline.vqvae,
        pipeline.text_encoder,
        make_source(),
        held_out=held_out,
    )
    torch.nn.init.normal_(stage.transformer.head.weight)
    return stage


def test_held_out_pictures_are_judged_by_loss_and_error_of_the_trained_scales(tiny_pipeline: StarPipeline) -> None:
    pictures = Pictures(11)  # more than are looked at in one pass
    stage = judged_stage(tiny_pipeline, pictures, label_smoothing=0.3, token_noise=0.5, scale_weight="side")
    figures = stage.eval().evaluate()
    assert stage.is_judged
    assert set(figures) == {
        f"held-out {name} {side}" for name in ("loss", "error", "last loss", "last error") for side in (32, 64)
    }
    for resolution, scales in ((32, 3), (64, 2)):  # of the larger one only two scales are trained
        schedule = SCHEDULES[resolution].prefix(scales)
        surprise, wrong = [], []
        for index in range(11):
            pixels = pictures.pixels(index, resolution, "centre", random.Random(0))[None]
            with torch.no_grad():
                maps = tiny_pipeline.vqvae.tokenize(pixels, SCHEDULES[resolution])[:scales]
                known = tiny_pipeline.vqvae.quantizer.teacher_input(maps, SCHEDULES[resolution])
                rng = random.Random(f"evaluation {index - index % 8}")
                own = [random.Random(rng.getrandbits(64)) for _ in range(index % 8 + 1)][-1]
                told = tiny_pipeline.text_encoder.encode([pictures.caption(index, own)])
                logits = stage.transformer(stage.transformer.prompt(told), known, schedule)
            tokens = torch.cat(maps, dim=1)
            surprise.append(-logits.log_softmax(-1).gather(-1, tokens[..., None])[0, :, 0])
            wrong.append((logits.argmax(-1) != tokens).float()[0])
        last = schedule.slice(scales - 1)
        loss, error = torch.stack(surprise), torch.stack(wrong)
        assert figures[f"held-out loss {resolution}"] == pytest.approx(loss.mean().item(), rel=1e-4)
        assert figures[f"held-out last loss {resolution}"] == pytest.approx(loss[:, last].mean().item(), rel=1e-4)
        assert figures[f"held-out error {resolution}"] == pytest.approx(error.mean().item(), abs=1e-5)
        assert figures[f"held-out last error {resolution}"] == pytest.approx(error[:, last].mean().item(), abs=1e-5)


def test_judging_does_not_change_what_is_learned(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    loop = LoopConfig(steps=3, learning_rate=1e-2, precision="float32", save_every=3)
    kept = []
    for every in (0, 1):
        stage = judged_stage(tiny_pipeline, Pictures(3, broken=[1]))
        train_stage(stage, replace(loop, evaluate_every=every), tmp_path / str(every))
        kept.append(stage.transformer.state_dict())
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])


def test_judging_needs_held_out_pictures(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    loop = LoopConfig(steps=3, learning_rate=1e-2, evaluate_every=1)
    with pytest.raises(OptionError, match="stage star has no held-out pictures"):
        train_stage(judged_stage(tiny_pipeline, None), loop, tmp_path)


# -- what a run must share, and what it tells -------------------------------------------------------------------------


def test_the_model_and_its_scales_may_not_change_on_the_way(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    """Though every tensor has the same shape. Checkpoints that do not tell of them go on as ever."""
    loop = LoopConfig(steps=1, learning_rate=1e-2, precision="float32", workers=0)
    config, parts = StarStageConfig(scenes=9), (tiny_pipeline.vqvae, tiny_pipeline.text_encoder, make_source())
    turned = StarStage(replace(MODEL, rope_norm=32.0), config, SCHEDULES, *parts)
    moved = StarStage(MODEL, config, {32: ScaleSchedule((1, 3, 4)), 64: LARGE}, *parts)
    train_stage(make_stage(tiny_pipeline), loop, tmp_path)
    for other, said in ((turned, r"model.rope_norm 64.0 -> 32.0$"), (moved, r"resolutions.32 \[\[1, 2, 4\], 0\] -> ")):
        with pytest.raises(TrainingError, match=f"what changed: {said}"):
            train_stage(other, loop, tmp_path)
    path = tmp_path / "checkpoint-00000001.pt"
    state = torch.load(path, weights_only=True)
    older = {key: value for key, value in state["settings"].items() if key not in ("model", "resolutions")}
    torch.save({**state, "settings": older}, path)
    train_stage(turned, loop, tmp_path)


def test_pictures_that_cannot_be_read_are_counted(tiny_pipeline: StarPipeline) -> None:
    stage = make_stage(tiny_pipeline)
    assert "unreadable" not in stage.loss(first_batch_at(32), 0)[1]  # scenes can all be drawn
    portions = [Portion(resolution=32, batch_size=3, share=1.0)]
    source = stage.source = PixelBatches(Pictures(6, broken=[1, 4]), SCHEDULES, portions, 0.1, 0)
    told = [stage.loss(source.batch(step), step)[1]["unreadable"] for step in range(4)]  # two epochs
    assert told[1:] == [2, 2, 2]
    assert set(stage.unreadable) == {"picture 1", "picture 4"}
