"""What stage 1 learns from: scenes as they always were, and any other set of pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from star_cli.data import shapes
from star_cli.data.source import ShapeScenes
from star_cli.errors import DataError, OptionError
from star_cli.training.vqvae_batches import ImageBatch, PictureSource, SceneSource, image_source, split_data
from star_cli.training.vqvae_config import VQVAEStageConfig
from tests.training.pictures import Pictures

CONFIG = VQVAEStageConfig(
    batch_size=4, plain_share=0.5, plain_crop=16, plain_batch_size=5, crop=16, crop_batch_size=3, large_share=0.3
)
SCENES = ShapeScenes(shapes.HELD_OUT_SEED)


def scenes(seed: int = 0) -> SceneSource:
    return SceneSource(SCENES, CONFIG, [32, 64], 10, seed)


def pictures(data: Pictures, config: VQVAEStageConfig = CONFIG) -> PictureSource:
    return PictureSource(data, config, [32, 64], 10, 0)


@pytest.mark.parametrize("source", [scenes(1), pictures(Pictures(20))], ids=["scenes", "pictures"])
def test_batches_follow_from_seed_and_step(source: SceneSource | PictureSource) -> None:
    for step in (0, 9, 10, 31, -3):
        assert torch.equal(source.batch(step).images, source.batch(step).images)
    assert not torch.equal(source.batch(0).images, source.batch(1).images)


def test_another_seed_gives_other_batches() -> None:
    assert not torch.equal(scenes(1).batch(0).images, scenes(2).batch(0).images)


@pytest.mark.parametrize("source", [scenes(), pictures(Pictures(20))], ids=["scenes", "pictures"])
def test_first_batches_are_crops_and_later_ones_also_whole_pictures(source: SceneSource | PictureSource) -> None:
    assert {source.batch(step).images.shape for step in range(10)} == {(5, 3, 16, 16)}
    later = {source.batch(step).images.shape for step in range(10, 60)}
    assert later == {(3, 3, 16, 16), (4, 3, 32, 32), (1, 3, 64, 64)}


def test_pictures_are_mirrored_as_often_as_asked() -> None:
    config = replace(CONFIG, plain_share=0, crop_share=0, large_share=0, square="centre")
    plain, mirrored = (pictures(Pictures(20), replace(config, flip_share=share)) for share in (0.0, 1.0))
    for step in range(10, 13):
        assert torch.equal(plain.batch(step).images.flip(-1), mirrored.batch(step).images)


def test_processes_make_their_rows_of_the_batch_one_would_make() -> None:
    source = pictures(Pictures(20, broken=[3]))
    for step in (2, 12):
        whole = source.batch(step)
        parts = [source.part(step, rank, 2) for rank in range(2)]
        assert [rows for _, rows in parts] == [len(whole.images)] * 2
        for rank, (part, _) in enumerate(parts):
            assert torch.equal(part.images, whole.images[rank::2])
    with pytest.raises(OptionError, match="shared by 9"):
        source.part(2, 0, 9)


def test_an_unreadable_picture_is_named_and_another_comes_in_its_place() -> None:
    source = pictures(Pictures(6, broken=[2]))
    batches: list[ImageBatch] = [source.batch(step) for step in range(10)]
    assert {name for batch in batches for name in batch.unreadable} == {"picture 2"}
    assert {len(batch.images) for batch in batches} == {5}
    assert torch.equal(source.batch(4).images, source.batch(4).images)


def test_a_set_without_readable_pictures_ends_the_run() -> None:
    with pytest.raises(DataError, match=r"1,000 pictures in a row cannot be read; the last: picture [012] is broken"):
        pictures(Pictures(3, broken=range(3))).batch(0)
    with pytest.raises(DataError, match="no picture"):
        pictures(Pictures(0))


def test_small_sets_fill_a_batch_with_repeats() -> None:
    assert len(pictures(Pictures(2)).batch(0).images) == 5


def test_scenes_are_held_out_by_seed_and_pictures_by_number() -> None:
    data, held = split_data(None, None, 4)
    assert isinstance(image_source(data, CONFIG, [32], 0, 0), SceneSource)
    assert (held.name(0), len(held)) == (f"shapes seed {shapes.HELD_OUT_SEED}", 4)
    data, held = split_data(Pictures(50), None, 64)
    assert isinstance(image_source(data, CONFIG, [32], 0, 0), PictureSource)
    assert (len(data), len(held)) == (45, 5)
    own = Pictures(3)
    assert split_data(Pictures(50), own, 64)[1] is own
