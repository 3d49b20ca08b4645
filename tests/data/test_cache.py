"""The token cache: what goes in comes out, once made it is kept, and another one is never taken for it."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from star_cli import images
from star_cli.data.cache import TokenCache, open_cache
from star_cli.data.cache_build import build_cache
from star_cli.data.cache_manifest import MANIFEST, TOLD
from star_cli.data.cache_plan import CacheOptions
from star_cli.data.encoding import hash_text_encoder, hash_vqvae, tokenize
from star_cli.errors import DataError, OptionError, OutputError, OutputPathError
from star_cli.models.float32 import exact_float32
from star_cli.models.schedule import ScaleSchedule
from star_cli.pipeline import StarPipeline
from tests.data.pictures import Pictures, Vanished

UNREADABLE = (3, 4, 5, 6, 7, 10)  # the whole second shard of three among them, and the last picture
OPTIONS = CacheOptions(batch_size=2, pictures_per_shard=4)


def build(
    pipeline: StarPipeline, folder: Path, source: Pictures | None = None, options: CacheOptions = OPTIONS, *res: int
) -> TokenCache:
    schedules = {resolution: pipeline.schedules[resolution] for resolution in res or (32,)}
    source = Pictures(unreadable=UNREADABLE) if source is None else source
    return build_cache(source, folder, pipeline.vqvae, pipeline.text_encoder, schedules, options)


@pytest.fixture(scope="module")
def made(tiny_pipeline: StarPipeline, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    """A whole cache. Shared: change `own` instead."""
    return build(tiny_pipeline, tmp_path_factory.mktemp("cache") / "made")


@pytest.fixture
def own(made: TokenCache, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made.folder, tmp_path / "own"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


# -- what goes in comes out --------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_pictures(made: TokenCache, tiny_pipeline: StarPipeline) -> None:
    source, schedule = Pictures(), tiny_pipeline.schedules[32]
    readable = [index for index in range(11) if index not in UNREADABLE]
    pixels = torch.stack([source.pixels(index, 32, "centre", None) for index in readable])  # type: ignore[arg-type]
    direct = torch.cat(tiny_pipeline.vqvae.tokenize(pixels, schedule), dim=1)
    assert torch.equal(made.tokens(32, readable), direct)
    assert torch.equal(made.tokens(32, readable[::-1]), direct.flip(0))
    assert len(direct.unique()) > 4  # else anything would equal anything


def test_captions_come_back_word_for_word(made: TokenCache) -> None:
    assert [made.captions(index) for index in range(11)] == [Pictures().captions(index) for index in range(11)]
    assert made.manifest.captions == sum(len(Pictures().captions(index)) for index in range(11))


def test_features_are_those_of_the_text_encoder(made: TokenCache, tiny_pipeline: StarPipeline) -> None:
    picks = [(7, 2), None, (1, 0), (7, 0), (10, 1)]
    texts = ["" if pick is None else Pictures().captions(pick[0])[pick[1]] for pick in picks]
    expected, found = tiny_pipeline.text_encoder.encode(texts), made.features(picks)
    assert torch.equal(found.mask, expected.mask)
    assert (found.pooled - expected.pooled).abs().max() < 1e-5
    assert (found.states[found.mask] - expected.states[expected.mask]).abs().max() < 1e-5
    assert not found.states[~found.mask].any()


def test_float16_features_differ_in_the_eleventh_bit(
    made: TokenCache, tiny_pipeline: StarPipeline, tmp_path: Path
) -> None:
    half = build(tiny_pipeline, tmp_path / "half", options=replace(OPTIONS, features="float16"))
    exact, rounded = made.features([(7, 0)]), half.features([(7, 0)])
    assert rounded.states.dtype == torch.float32
    assert not torch.equal(exact.states, rounded.states)
    assert torch.allclose(exact.states, rounded.states, rtol=2**-11, atol=2**-24)
    assert load_file(half.folder / "captions-00001.safetensors")["states"].dtype == torch.float16


def test_without_features_the_words_alone_are_kept(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    schedules = {32: tiny_pipeline.schedules[32]}
    options = replace(OPTIONS, features="none")
    cache = build_cache(Pictures(), tmp_path / "words", tiny_pipeline.vqvae, None, schedules, options)
    assert cache.captions(7) == Pictures().captions(7)
    with pytest.raises(DataError, match="holds no text features"):
        cache.features([(7, 0)])
    with pytest.raises(OptionError, match="need a text encoder"):
        build_cache(Pictures(), tmp_path / "other", tiny_pipeline.vqvae, None, schedules, OPTIONS)


def test_unreadable_pictures_are_left_out_recorded_and_stood_in_for(made: TokenCache) -> None:
    assert [(one.index, one.name, one.reason) for one in made.skipped(32)] == [
        (index, f"pictures/{index}.png", f"no picture in pictures/{index}.png") for index in UNREADABLE
    ]
    told = json.loads((made.folder / MANIFEST).read_text(encoding="utf-8"))["resolutions"]["32"]
    assert (told["pictures"], told["tokens"], told["sides"]) == (5, 21, [1, 2, 4])
    assert made.stand_in(32, 2) == (2, [])
    assert made.stand_in(32, 3) == (8, [f"pictures/{index}.png" for index in (3, 4, 5, 6, 7)])
    assert made.stand_in(32, 10) == (0, ["pictures/10.png"])


def test_pictures_whose_captions_cannot_be_read_are_left_out_too(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    cache = build(tiny_pipeline, tmp_path / "wordless", Pictures(5, wordless=[2]))
    (left_out,) = cache.skipped(32)
    assert (left_out.name, left_out.reason) == ("pictures/2.png", "its captions are no text")
    assert cache.captions(2) == ()
    assert cache.stand_in(32, 2) == (3, ["pictures/2.png"])


def test_random_crop_is_one_for_each_picture(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    first, again = (
        build(tiny_pipeline, tmp_path / name, Pictures(6), replace(OPTIONS, crop="random")).tokens(32, range(6))
        for name in ("first", "again")
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, build(tiny_pipeline, tmp_path / "centre", Pictures(6)).tokens(32, range(6)))


def test_workers_change_nothing(made: TokenCache, tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    cache = build(tiny_pipeline, tmp_path / "ahead", options=replace(OPTIONS, workers=1))
    assert contents(cache.folder) == contents(made.folder)


def test_an_error_in_a_worker_keeps_its_words(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^the disk is gone$") as met:
        build(tiny_pipeline, tmp_path / "gone", Vanished(), replace(OPTIONS, workers=1))
    assert met.value.hint == "plug it in"


def test_a_pickled_cache_maps_its_files_anew(made: TokenCache) -> None:
    expected = made.tokens(32, [0, 8])
    data = pickle.dumps(made)
    assert len(data) < 20_000  # paths and counts, no tensors
    assert torch.equal(pickle.loads(data).tokens(32, [0, 8]), expected)


# -- once made it is kept ----------------------------------------------------------------------------------------------


def test_what_is_there_is_not_made_again(own: Path, tiny_pipeline: StarPipeline) -> None:
    before, bytes_before = written_at(own), contents(own)
    build(tiny_pipeline, own)
    assert written_at(own) == before
    (own / "tokens-32-00001.safetensors").unlink()
    (own / "captions-00002.safetensors").write_bytes(b"cut")
    build(tiny_pipeline, own)
    assert contents(own) == bytes_before
    kept = {"tokens-32-00000.safetensors", "tokens-32-00002.safetensors", "captions-00000.safetensors"}
    assert {name for name, time in written_at(own).items() if time == before[name]} >= kept


def test_a_stopped_run_goes_on_to_the_same_bytes(made: TokenCache, tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name.startswith("tokens") and done > 6:
            raise KeyboardInterrupt

    folder, schedules = tmp_path / "stopped", {32: tiny_pipeline.schedules[32]}
    arguments = (Pictures(unreadable=UNREADABLE), folder, tiny_pipeline.vqvae, tiny_pipeline.text_encoder, schedules)
    with pytest.raises(KeyboardInterrupt):
        build_cache(*arguments, OPTIONS, stop)
    with pytest.raises(DataError, match="unfinished"):
        open_cache(folder)
    first = (folder / "tokens-32-00000.safetensors").stat().st_mtime_ns
    told: list[tuple[str, int, int]] = []
    build_cache(*arguments, OPTIONS, lambda *progress: told.append(progress))
    assert (folder / "tokens-32-00000.safetensors").stat().st_mtime_ns == first
    assert ("tokens at 32 px", 4, 11) in told
    assert told[-1] == ("tokens at 32 px", 11, 11)
    assert contents(folder) == contents(made.folder)


def test_a_resolution_is_added_to_what_is_there(own: Path, tiny_pipeline: StarPipeline) -> None:
    before = written_at(own)
    cache = build(tiny_pipeline, own, None, OPTIONS, 64)
    assert set(cache.sides) == {32, 64}
    assert cache.tokens(64, [0]).shape == (1, 85)
    assert all(written_at(own)[name] == time for name, time in before.items() if name != MANIFEST)
    assert len(cache.skipped(64)) == len(cache.skipped(32)) == 6


def test_a_full_disk_leaves_only_whole_files(
    tiny_pipeline: StarPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, left = images._write_synced, 4

    def fill(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        writing(path, data)

    monkeypatch.setattr(images, "_write_synced", fill)
    with pytest.raises(OutputError, match="No space left"):
        build(tiny_pipeline, tmp_path / "full")
    assert len(contents(tmp_path / "full")) == 4
    monkeypatch.undo()
    assert build(tiny_pipeline, tmp_path / "full").manifest.is_complete


# -- another one is never taken for it ---------------------------------------------------------------------------------


def other_vqvae(pipeline: StarPipeline) -> dict[str, object]:
    state = {name: value.clone() for name, value in pipeline.vqvae.state_dict().items()}
    state["quantizer.codebook.weight"][0, 0] += 1
    other = type(pipeline.vqvae)(pipeline.vqvae.config)
    other.load_state_dict(state)
    return {"vqvae": other}


def other_encoder(pipeline: StarPipeline) -> dict[str, object]:
    assert pipeline.text_encoder is not None
    other = pickle.loads(pickle.dumps(pipeline.text_encoder.tower))
    next(other.parameters()).data += 1
    return {"text_encoder": type(pipeline.text_encoder)(pipeline.text_encoder.config, other, None)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_vqvae, "another VQVAE"),
        (other_encoder, "another text encoder"),
        (lambda _: {"source": Pictures(12)}, "another source .it was made with pictures 11, this is pictures 12"),
        (lambda _: {"schedules": {32: ScaleSchedule((1, 4))}}, r"another schedule at 32 px .*\[1, 2, 4\].*\[1, 4\]"),
        (lambda _: {"schedules": {48: ScaleSchedule((1, 6))}}, "no tokens at 48 px, only at 32"),
    ],
)
def test_another_cache_is_refused_and_said_in_what(
    made: TokenCache, tiny_pipeline: StarPipeline, change: object, said: str
) -> None:
    right = {
        "vqvae": tiny_pipeline.vqvae,
        "text_encoder": tiny_pipeline.text_encoder,
        "schedules": {32: tiny_pipeline.schedules[32]},
        "source": Pictures(),
    }
    assert len(open_cache(made.folder, **right)) == 11
    with pytest.raises(DataError, match=said):
        open_cache(made.folder, **{**right, **change(tiny_pipeline)})  # type: ignore[operator]


def test_a_folder_of_something_else_is_left_alone(own: Path, tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    before = contents(own)
    with pytest.raises(DataError, match=r"another features .it was made with float32, this is float16"):
        build(tiny_pipeline, own, options=replace(OPTIONS, features="float16"))
    with pytest.raises(DataError, match="another source"):
        build(tiny_pipeline, own, Pictures(12))
    assert contents(own) == before
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".0123.star-tmp").write_text("{")
    assert not (tmp_path / "killed" / MANIFEST).exists()
    assert (build(tiny_pipeline, tmp_path / "killed", Pictures(2)).folder / MANIFEST).is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not empty"):
        build(tiny_pipeline, tmp_path / "mine")
    with pytest.raises(DataError, match="holds no token cache"):
        open_cache(tmp_path / "mine")


@pytest.mark.parametrize("place", ["file", "file/below", "link", "n" * 300])
def test_a_place_that_no_folder_can_have_is_said_before_any_work(
    tiny_pipeline: StarPipeline, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputPathError):
        build(tiny_pipeline, tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_decoder_does_not_change_the_tokens_nor_a_new_place_the_features(tiny_pipeline: StarPipeline) -> None:
    decoder = type(tiny_pipeline.vqvae)(tiny_pipeline.vqvae.config)
    decoder.load_state_dict(tiny_pipeline.vqvae.state_dict())
    torch.nn.init.ones_(decoder.decoder.head.weight)
    assert hash_vqvae(decoder) == hash_vqvae(tiny_pipeline.vqvae)
    encoder = tiny_pipeline.text_encoder
    assert encoder is not None
    moved = type(encoder)(replace(encoder.config, source="/elsewhere"), encoder.tower, None)
    shorter = type(encoder)(replace(encoder.config, max_tokens=8), encoder.tower, None)
    assert hash_text_encoder(moved) == hash_text_encoder(encoder) != hash_text_encoder(shorter)


# -- damage is named ---------------------------------------------------------------------------------------------------


def test_a_shard_cut_short_or_missing_is_named(own: Path) -> None:
    path = own / "tokens-32-00002.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(DataError, match=r"tokens-32-00002.safetensors is cut short or damaged: .* bytes, expected"):
        open_cache(own)
    path.unlink()
    with pytest.raises(DataError, match=r"tokens-32-00002.safetensors: No such file"):
        open_cache(own)


def test_damage_of_the_same_length_is_named_when_it_is_met(own: Path) -> None:
    header = own / "captions-00001.safetensors"
    header.write_bytes(b"\xff" * 64 + header.read_bytes()[64:])
    values = own / "tokens-32-00000.safetensors"
    values.write_bytes(values.read_bytes()[:-2] + b"\xff\x7f")
    cache = open_cache(own)
    assert cache.captions(1) == Pictures().captions(1)
    with pytest.raises(DataError, match=r"captions-00001.safetensors is missing, damaged or cut short"):
        cache.captions(5)
    with pytest.raises(DataError, match=r"tokens-32-00000.safetensors is damaged: tokens outside the codebook of 16"):
        cache.tokens(32, [0])


def test_verify_reads_every_byte(own: Path) -> None:
    open_cache(own).verify()
    path = own / "tokens-32-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1  # a token that could be
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"tokens-32-00002.safetensors is damaged: not the bytes"):
        open_cache(own).verify()


def test_a_shard_of_another_cache_is_named(own: Path) -> None:
    path = own / "tokens-32-00002.safetensors"
    size = path.stat().st_size
    with torch.no_grad():
        save_file({"tokens": load_file(path)["tokens"]}, path, metadata={TOLD: '{"identity": "0"}'})
    manifest = json.loads((own / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][path.name]["size_bytes"] += path.stat().st_size - size
    (own / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match=r"tokens-32-00002.safetensors belongs to another token cache"):
        open_cache(own).tokens(32, [8])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "x", "format_version": 1}'])
def test_a_damaged_manifest_is_said(own: Path, text: str) -> None:
    (own / MANIFEST).write_text(text)
    with pytest.raises(DataError, match="damaged, or of another version"):
        open_cache(own)


@pytest.mark.parametrize("wrong", [{"size_bytes": "12"}, {"sha256": 5}, {"more": 1}])
def test_a_manifest_with_something_else_about_a_file_is_said(own: Path, wrong: dict[str, object]) -> None:
    told = json.loads((own / MANIFEST).read_text())
    told["files"]["captions-00000.safetensors"] |= wrong
    (own / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(DataError, match="damaged, or of another version"):
        open_cache(own)


def test_a_manifest_that_was_deleted_is_made_again_of_what_its_files_say(
    own: Path, tiny_pipeline: StarPipeline, made: TokenCache
) -> None:
    before, written = contents(own), written_at(own)
    (own / MANIFEST).unlink()
    again = build(tiny_pipeline, own)
    assert contents(own) == before
    del written[MANIFEST]
    assert {name: at for name, at in written_at(own).items() if name != MANIFEST} == written  # nothing was encoded
    assert len(again) == len(made)


def test_pictures_that_cannot_be_read_at_all_are_an_error(tiny_pipeline: StarPipeline, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of 3 pictures .* the first, pictures/0.png: no picture in"):
        build(tiny_pipeline, tmp_path / "bad", Pictures(3, unreadable=range(3)))
    with pytest.raises(DataError, match="no pictures"):
        build(tiny_pipeline, tmp_path / "empty", Pictures(0))


# -- one way to encode -------------------------------------------------------------------------------------------------


def test_tokens_are_float32_whatever_surrounds_them(tiny_pipeline: StarPipeline) -> None:
    schedule = tiny_pipeline.schedules[64]
    pixels = torch.stack([Pictures().pixels(index, 64, "centre", None) for index in range(6)])  # type: ignore[arg-type]
    plain = tokenize(tiny_pipeline.vqvae, pixels, schedule)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenize(tiny_pipeline.vqvae, pixels, schedule), plain)
        with torch.no_grad():  # that this could have been otherwise:
            assert not torch.equal(torch.cat(tiny_pipeline.vqvae.tokenize(pixels, schedule), dim=1), plain)
    assert torch.equal(tokenize(tiny_pipeline.vqvae, pixels, schedule, scales=2), plain[:, :5])


def test_exact_float32_turns_tf32_off_and_back_on() -> None:
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = convolutions.fp32_precision, products.fp32_precision
    with exact_float32("cuda"):
        assert (convolutions.fp32_precision, products.fp32_precision) == ("ieee", "ieee")
    assert (convolutions.fp32_precision, products.fp32_precision) == before
