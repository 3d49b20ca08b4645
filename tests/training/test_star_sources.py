"""Stage 2's sources: pixels and cache give the same batches and the same loss; order and words follow from the step."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from star_cli.data.cache import TokenCache
from star_cli.data.cache_build import build_cache
from star_cli.data.cache_plan import CacheOptions
from star_cli.data.source import ShapeScenes
from star_cli.errors import DataError, OptionError
from star_cli.models.config import TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.pipeline import StarPipeline
from star_cli.training.batch_order import PortionOrder
from star_cli.training.batch_reader import BatchReader
from star_cli.training.batches import load_batches, shard
from star_cli.training.star import StarStage, StarStageConfig
from star_cli.training.star_batches import Portion, StarBatch, StarSource, TokenSource
from star_cli.training.star_sources import CachedBatches, PixelBatches
from tests.data.pictures import Pictures
from tests.models.builders import laws, lively

MODEL = TransformerConfig(depth=2, width=32, heads=2, codebook_size=16, code_dim=8, levels=4, text_width=32)
PORTIONS = (
    Portion(resolution=32, batch_size=4, share=2.0),
    Portion(resolution=64, scales=3, batch_size=3, share=1.0),
)
UNREADABLE, WORDLESS = (2, 10), (3,)
LEFT_OUT = (2, 3, 10)
OPTIONS = CacheOptions(batch_size=2, pictures_per_shard=4)


@pytest.fixture(scope="module")
def cache(tiny_pipeline: StarPipeline, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    return make_cache(tiny_pipeline, tmp_path_factory.mktemp("cache") / "made", OPTIONS)


def make_cache(pipeline: StarPipeline, folder: Path, options: CacheOptions) -> TokenCache:
    source = Pictures(unreadable=UNREADABLE, wordless=WORDLESS)
    return build_cache(source, folder, pipeline.vqvae, pipeline.text_encoder, pipeline.schedules, options)


def from_pixels(pipeline: StarPipeline, drop_text: float = 0.1, seed: int = 0) -> PixelBatches:
    return PixelBatches(
        Pictures(unreadable=UNREADABLE, wordless=WORDLESS), pipeline.schedules, PORTIONS, drop_text, seed
    )


def from_cache(
    cache: TokenCache, pipeline: StarPipeline, drop_text: float = 0.1, use_features: bool | None = None
) -> CachedBatches:
    return CachedBatches(cache, pipeline.schedules, PORTIONS, drop_text, 0, use_features=use_features)


def losses(pipeline: StarPipeline, source: StarSource, steps: int = 6) -> list[float]:
    """Of a short training from fixed weights."""
    stage = StarStage(
        MODEL, StarStageConfig(scenes=1), dict(pipeline.schedules), pipeline.vqvae, pipeline.text_encoder, source
    )
    lively(stage.transformer)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.05)
    found = []
    for step in range(steps):
        loss, _ = stage.loss(source.batch(step), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


# -- the same loss ----------------------------------------------------------------------------------------------------


def test_training_from_the_cache_has_the_loss_of_training_from_pixels(
    cache: TokenCache, tiny_pipeline: StarPipeline
) -> None:
    pixels = losses(tiny_pipeline, from_pixels(tiny_pipeline))
    assert len({round(loss, 3) for loss in pixels}) == len(pixels)
    assert losses(tiny_pipeline, from_cache(cache, tiny_pipeline)) == pytest.approx(pixels, abs=1e-6)
    words = from_cache(cache, tiny_pipeline, use_features=False)
    assert losses(tiny_pipeline, words) == pytest.approx(pixels, abs=1e-6)


def test_float16_features_move_the_loss_a_little(
    cache: TokenCache, tiny_pipeline: StarPipeline, tmp_path: Path
) -> None:
    half = make_cache(tiny_pipeline, tmp_path / "half", replace(OPTIONS, features="float16"))
    exact, rounded = (losses(tiny_pipeline, from_cache(kind, tiny_pipeline)) for kind in (cache, half))
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=2e-3)


def test_pixels_and_cache_give_the_same_rows_words_and_stand_ins(
    cache: TokenCache, tiny_pipeline: StarPipeline
) -> None:
    reader = BatchReader(tiny_pipeline.vqvae, tiny_pipeline.text_encoder, tiny_pipeline.schedules)
    skipped: set[str] = set()
    for step in range(12):
        raw, ready = from_pixels(tiny_pipeline).batch(step), from_cache(cache, tiny_pipeline).batch(step)
        assert (raw.resolution, raw.scales, raw.captions) == (ready.resolution, ready.scales, ready.captions)
        assert raw.skipped == ready.skipped
        skipped |= set(raw.skipped)
        (tokens, condition), (kept, features) = reader.read(raw), reader.read(ready)
        assert torch.equal(tokens, kept)
        assert torch.equal(condition.mask, features.mask)
        assert torch.allclose(condition.pooled, features.pooled, atol=1e-5)  # encoded in other batches
    assert skipped == {f"pictures/{index}.png" for index in LEFT_OUT}


# -- order ------------------------------------------------------------------------------------------------------------


def test_a_batch_follows_from_its_step_alone(cache: TokenCache, tiny_pipeline: StarPipeline) -> None:
    used = from_cache(cache, tiny_pipeline)
    batches = [used.batch(step) for step in range(30)]
    assert {(batch.resolution, batch.scales, tuple(batch.tokens.shape)) for batch in batches} == {  # type: ignore[union-attr]
        (32, 3, (4, 21)),
        (64, 3, (3, 21)),
    }
    for step in (29, 3, 17):
        fresh = from_cache(cache, tiny_pipeline).batch(step)
        assert torch.equal(fresh.tokens, batches[step].tokens)  # type: ignore[arg-type]
        assert fresh.captions == batches[step].captions
    other = CachedBatches(cache, tiny_pipeline.schedules, PORTIONS, 0.1, seed=1)
    assert [other.batch(step).captions for step in range(5)] != [batch.captions for batch in batches[:5]]


def test_each_portion_goes_through_its_own_epochs(tiny_pipeline: StarPipeline) -> None:
    source = PixelBatches(ShapeScenes(7), tiny_pipeline.schedules, PORTIONS, 0.0, 0)
    rows: list[list[int]] = [[], []]
    for step in range(40):
        number, earlier = source._portion_order.at(step)
        rows[number] += source._orders[number].rows(earlier, PORTIONS[number].batch_size)
    for seen in rows:
        epochs = [tuple(seen[start : start + 7]) for start in range(0, len(seen) - 6, 7)]
        assert len(epochs) > 3
        assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
        assert len(set(epochs)) > 1


@laws
@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=4), st.integers(0, 2500))
def test_how_often_a_portion_came_before_is_known_without_counting(shares: list[float], step: int) -> None:
    order = PortionOrder(shares, "law")
    kinds = [order.at(earlier)[0] for earlier in range(step)]
    kind, before = PortionOrder(shares, "law").at(step)
    assert before == kinds.count(kind)


def test_portions_come_as_often_as_their_shares_say() -> None:
    order = PortionOrder([0.2, 0.5, 0.3], "x")
    kinds = [order.at(step)[0] for step in range(1000)]
    assert [kinds.count(kind) for kind in range(3)] == [200, 500, 300]
    assert len(set(kinds[:20])) == 3  # mixed, not one after another


# -- words ------------------------------------------------------------------------------------------------------------


def test_captions_are_dropped_and_chosen_as_often_as_asked(cache: TokenCache, tiny_pipeline: StarPipeline) -> None:
    portion = [Portion(resolution=32, batch_size=8, share=1.0)]
    source = CachedBatches(cache, tiny_pipeline.schedules, portion, 0.25, 0)
    seen = [caption for step in range(150) for caption in source.batch(step).captions]
    bare = sum(index % 4 == 0 for index in range(11) if index not in LEFT_OUT)  # pictures without a caption
    expected = 0.25 + 0.75 * bare / 11  # 2 and 3 are stood in for by 4, and 10 by 0: both have no caption
    expected += 0.75 * 3 / 11
    assert abs(seen.count("") / len(seen) - expected) < 0.04
    of_seven = [caption for caption in seen if " of 7:" in caption]
    assert {caption[8] for caption in of_seven} == {"0", "1", "2"}


def test_captions_may_be_written_anew_beside_cached_tokens(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    scenes, schedules = ShapeScenes(5), {32: tiny_pipeline.schedules[32]}
    options = replace(OPTIONS, features="none")
    cache = build_cache(scenes, tmp_path / "shapes", tiny_pipeline.vqvae, None, schedules, options)
    portions = [Portion(resolution=32, batch_size=5, share=1.0)]
    fresh, pixels = (
        CachedBatches(cache, schedules, portions, 0.0, 0, captions=scenes),
        PixelBatches(scenes, schedules, portions, 0.0, 0),
    )
    assert fresh.batch(1).captions == pixels.batch(1).captions
    assert len({caption for step in range(6) for caption in fresh.batch(step).captions}) > 10
    with pytest.raises(DataError, match="made of other pictures: shapes 0 5"):
        CachedBatches(cache, schedules, portions, 0.0, 0, captions=ShapeScenes(6))


# -- many processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_process_makes_its_own_rows_alone(cache: TokenCache, tiny_pipeline: StarPipeline, world: int) -> None:
    for source in (from_cache(cache, tiny_pipeline), from_pixels(tiny_pipeline)):
        for step in range(4):
            whole = source.batch(step)
            for rank in range(world):
                (mine, rows), cut = source.part(step, rank, world), shard(whole, rank, world)
                assert rows == len(whole)
                assert mine.captions == cut.captions == whole.captions[rank::world]
                assert list(mine.rows) == list(cut.rows) == (list(range(rank, rows, world)) if world > 1 else [])
                for name in ("tokens", "pixels"):
                    made, wanted = getattr(mine, name), getattr(cut, name)
                    assert wanted is None if made is None else torch.equal(made, wanted)
                if whole.features is not None:
                    assert torch.equal(mine.features.states, whole.features.states[rank::world])  # type: ignore[union-attr]
                    assert torch.equal(cut.features.states, whole.features.states[rank::world])
    with pytest.raises(OptionError, match="cannot be shared by 5"):
        from_pixels(tiny_pipeline).part(0, 0, 5)


def test_batches_come_out_of_a_worker_as_they_are(cache: TokenCache, tiny_pipeline: StarPipeline) -> None:
    for source in (from_cache(cache, tiny_pipeline), from_pixels(tiny_pipeline)):
        for step, (batch, rows) in enumerate(load_batches(source, 0, 3, workers=1)):
            assert rows == len(source.batch(step))
            assert isinstance(batch, StarBatch)
            assert batch.captions == source.batch(step).captions
            for name in ("tokens", "pixels"):
                sent, made = getattr(batch, name), getattr(source.batch(step), name)
                assert made is None if sent is None else torch.equal(sent, made)
        assert pickle.loads(pickle.dumps(source)).batch(2).captions == source.batch(2).captions


def test_a_batch_moves_whole(cache: TokenCache, tiny_pipeline: StarPipeline) -> None:
    ready = from_cache(cache, tiny_pipeline).batch(0).to("meta")
    assert ready.tokens is not None
    assert ready.features is not None
    assert {ready.tokens.device.type, ready.features.states.device.type, ready.features.mask.device.type} == {"meta"}
    raw = from_pixels(tiny_pipeline).batch(0).to("meta")
    assert raw.pixels is not None
    assert raw.pixels.device.type == "meta"
    assert len(raw) == len(raw.pixels) == 4
    assert raw.tokens is raw.features is None


# -- remembered captions ----------------------------------------------------------------------------------------------


def test_remembered_features_do_not_depend_on_what_was_seen(tiny_pipeline: StarPipeline) -> None:
    encoder = tiny_pipeline.text_encoder
    assert encoder is not None
    source = from_pixels(tiny_pipeline, drop_text=0.3)
    running = BatchReader(tiny_pipeline.vqvae, encoder, tiny_pipeline.schedules, remembered=3)
    for step in range(8):
        batch = source.batch(step)
        resumed = BatchReader(tiny_pipeline.vqvae, encoder, tiny_pipeline.schedules, remembered=3)
        here, there = running.condition(batch), resumed.condition(batch)
        assert torch.equal(here.states, there.states)
        assert torch.equal(here.pooled, there.pooled)
        assert torch.allclose(here.states, encoder.encode(batch.captions, rows=4).states, atol=1e-5)
        assert len(running._known) <= 3


def test_remembered_captions_are_encoded_once(tiny_pipeline: StarPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, encoded = tiny_pipeline.text_encoder, []
    assert encoder is not None
    encode_rows = encoder._encode_rows
    monkeypatch.setattr(encoder, "_encode_rows", lambda texts: encoded.extend(texts) or encode_rows(texts))
    reader = BatchReader(tiny_pipeline.vqvae, encoder, tiny_pipeline.schedules, remembered=2)
    for captions in (["a", "b"], ["b", "a"], ["b", "c"], ["b", "b"], ["a", "b"]):
        reader.condition(StarBatch(32, 3, None, captions))
    assert encoded == ["a", "b", "c", "a"]  # "a" was the one seen longest ago when "c" came


# -- refusals, and what must stay -------------------------------------------------------------------------------------


def test_what_fits_no_cache_or_schedule_is_refused(cache: TokenCache, tiny_pipeline: StarPipeline) -> None:
    portion, schedules = Portion(resolution=32, batch_size=2, share=1.0), tiny_pipeline.schedules
    with pytest.raises(OptionError, match="9 scales at 32 px fits no schedule"):
        CachedBatches(cache, schedules, [replace(portion, scales=9)], 0.1, 0)
    with pytest.raises(OptionError, match="all scales at 48 px fits no schedule"):
        PixelBatches(Pictures(), schedules, [replace(portion, resolution=48)], 0.1, 0)
    with pytest.raises(OptionError, match="at least one portion"):
        PixelBatches(Pictures(), schedules, [], 0.1, 0)
    with pytest.raises(DataError, match=r"no tokens at 32 px with sides \[1, 4\]"):
        CachedBatches(cache, {32: ScaleSchedule((1, 4))}, [portion], 0.1, 0)
    with pytest.raises(DataError, match="no pictures"):
        PixelBatches(Pictures(0), schedules, [portion], 0.1, 0)


def test_pictures_that_cannot_be_read_at_all_end_the_run(tiny_pipeline: StarPipeline) -> None:
    source = PixelBatches(Pictures(3, range(3)), tiny_pipeline.schedules, PORTIONS[:1], 0.1, 0)
    with pytest.raises(DataError, match=r"3 pictures in a row cannot be read; the last: no picture in pictures/\d.png"):
        source.batch(0)


def test_the_shipped_recipes_source_gives_the_batches_it_always_gave() -> None:
    """Rows and captions of a few steps, from before there were other sources."""
    cache = {res: torch.arange(97)[:, None].expand(97, 30).to(torch.int16) for res in (256, 512)}
    schedules = {256: ScaleSchedule((1, 2, 3, 4)), 512: ScaleSchedule((1, 2, 5), 4)}
    portions = (
        Portion(resolution=256, scales=2, batch_size=5, share=0.4),
        Portion(resolution=512, batch_size=3, share=0.6),
    )
    source = TokenSource(cache, schedules, portions, 0.1, seed=0)
    told = [
        [batch.resolution, batch.scales, batch.tokens.tolist(), batch.captions]  # type: ignore[union-attr]
        for batch in map(source.batch, range(12))
    ]
    assert hashlib.sha256(json.dumps(told).encode()).hexdigest() == GOLDEN


GOLDEN = "11a382e00ecbf595a9bf1b073decf03d4c44219516b994f3ad37cd0b0a948d7f"
