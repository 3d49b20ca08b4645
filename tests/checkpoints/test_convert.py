"""Official files become model folders and come back; whatever is wrong with one is named, and nothing in it runs."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from star_cli.checkpoints.convert import convert
from star_cli.checkpoints.export import export_official
from star_cli.checkpoints.folder import read_model_config, read_model_folder
from star_cli.checkpoints.official import open_official
from star_cli.checkpoints.published import PublishedModel
from star_cli.checkpoints.text_tower import copy_text_folder
from star_cli.checkpoints.verify import verify_folder
from star_cli.errors import ModelFolderError, OutputPathError, TextEncoderError, WeightsFileError
from tests.checkpoints.official_files import (
    SCHEDULE,
    TINY_STAR,
    TINY_VAR,
    official_state,
    snapshot,
    write_files,
)

BOTH = pytest.mark.parametrize("model", [TINY_STAR, TINY_VAR], ids=lambda model: model.name)


def tensors_of(path: Path) -> dict[str, Tensor]:
    content: Any = torch.load(path, weights_only=True)
    return dict(content["trainer"]["var_wo_ddp"] if "trainer" in content else content)


def refusal(*files: Path, model: PublishedModel = TINY_VAR) -> WeightsFileError:
    out = files[0].parent / "never"
    with pytest.raises(WeightsFileError) as caught:
        convert(files, model, out)
    assert not out.exists()
    return caught.value


# -- there and back ---------------------------------------------------------------------------------------------------


@BOTH
def test_converted_folder_loads_strictly_and_comes_back_as_it_was(model: PublishedModel, tmp_path: Path) -> None:
    files = write_files(tmp_path / "official", model)
    folder = convert(files, model, tmp_path / "model")
    assert folder.load_transformer().config == model.transformer
    assert folder.load_vqvae().config == model.vqvae
    assert (folder.sampling, dict(folder.schedules)) == (model.sampling, {8: SCHEDULE})
    assert [found.problem for found in verify_folder(folder)] == [None] * len(folder.files)
    for before, after in zip(files, export_official(folder, tmp_path / "back"), strict=False):
        first, second = tensors_of(before), tensors_of(tmp_path / "back" / before.name)
        assert after.parent == tmp_path / "back"
        assert set(first) == set(second)
        assert [key for key in first if first[key].dtype != second[key].dtype] == []
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_tensors_arrive_where_they_belong(tmp_path: Path) -> None:
    files = write_files(tmp_path, TINY_VAR)
    state, model = tensors_of(files[0]), convert(files, TINY_VAR, tmp_path / "model").load_transformer()
    assert torch.equal(model.class_embedding.weight, state["class_emb.weight"])
    assert torch.equal(model.blocks[1].modulation.bias, state["blocks.1.ada_lin.1.bias"])
    assert torch.equal(model.blocks[0].self_attention.gain.log_gain, state["blocks.0.attn.scale_mul_1H11"].flatten())


def test_snapshot_alone_is_enough_and_a_file_of_the_vqvae_alone_goes_before_its_copy(tmp_path: Path) -> None:
    ours, other = official_state(TINY_STAR.vqvae, seed=1), official_state(TINY_STAR.vqvae, seed=2)
    transformer = official_state(TINY_STAR.transformer)
    torch.save(snapshot(transformer, ours, [1, 2, 4]), tmp_path / "ckpt.pth")
    torch.save(other, tmp_path / "vae.pth")
    key = "quantize.embedding.weight"
    alone = convert([tmp_path / "ckpt.pth"], TINY_STAR, tmp_path / "alone")
    assert torch.equal(alone.load_vqvae().quantizer.codebook.weight, ours[key])
    both = convert([tmp_path / "ckpt.pth", tmp_path / "vae.pth"], TINY_STAR, tmp_path / "both")
    assert torch.equal(both.load_vqvae().quantizer.codebook.weight, other[key])
    assert both.provenance["converted_from"] == {"transformer": "ckpt.pth", "vqvae": "vae.pth"}


def test_large_parts_are_written_as_several_files_that_load_as_one(tmp_path: Path) -> None:
    files = write_files(tmp_path / "official", TINY_VAR)
    whole, told = convert(files, TINY_VAR, tmp_path / "whole"), []
    parted = convert(files, TINY_VAR, tmp_path / "parted", largest=40_000, on_bytes=lambda *counts: told.append(counts))
    shards = [path.name for path in parted.weights("transformer")]
    assert len(shards) > 2
    assert shards[0] == f"transformer-00001-of-{len(shards):05}.safetensors"
    ours, theirs = parted.load_transformer().state_dict(), whole.load_transformer().state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [done for name, done, total in told if name == "transformer"][-1] == told[0][2]
    (parted.path / shards[1]).unlink()
    with pytest.raises(ModelFolderError, match=f"{shards[1]}: missing"):
        read_model_folder(parted.path)


def test_part_that_the_config_does_not_list_is_an_error(tmp_path: Path) -> None:
    folder = convert(write_files(tmp_path, TINY_VAR), TINY_VAR, tmp_path / "model", largest=40_000)
    config = (folder.path / "config.json").read_text()
    (folder.path / "config.json").write_text(config.replace("transformer-00002", "unknown-00002"))
    with pytest.raises(ModelFolderError, match=r"config\.json: files does not list every part of transformer"):
        read_model_folder(folder.path)


def test_stored_dtype_is_the_asked_one_but_for_what_decides_tokens(tmp_path: Path) -> None:
    folder = convert(write_files(tmp_path, TINY_VAR), TINY_VAR, tmp_path / "half", dtype=torch.bfloat16)
    (path,) = folder.weights("transformer")
    tensors = load_file(path)
    assert tensors["head.weight"].dtype == torch.float32
    assert tensors["class_embedding.weight"].dtype == torch.bfloat16
    exported = tensors_of(export_official(folder, tmp_path / "back")[0])
    assert {value.dtype for value in exported.values() if value.is_floating_point()} == {torch.float32}


def test_what_is_kept_aside_does_not_make_another_model(tmp_path: Path) -> None:
    files = write_files(tmp_path, TINY_STAR)
    first = convert(files, TINY_STAR, tmp_path / "first")
    content = torch.load(files[0], weights_only=True)
    content["trainer"]["var_wo_ddp"]["class_emb.weight"].add_(1)
    torch.save(content, files[0])
    assert convert(files, TINY_STAR, tmp_path / "second").hash == first.hash


def test_vqvae_of_another_number_of_scales_is_taken(tmp_path: Path) -> None:
    files = write_files(tmp_path, TINY_VAR)
    state = tensors_of(files[1])
    state["quantize.ema_vocab_hit_SV"] = torch.rand(10, 16)
    torch.save(state, files[1])
    folder = convert(files, TINY_VAR, tmp_path / "model")
    back = tensors_of(export_official(folder, tmp_path / "back")[1])
    assert torch.equal(back["quantize.ema_vocab_hit_SV"], state["quantize.ema_vocab_hit_SV"])


def test_export_writes_over_nothing_unless_told(tmp_path: Path) -> None:
    files = write_files(tmp_path / "official", TINY_VAR)
    folder = convert(files, TINY_VAR, tmp_path / "model")
    with pytest.raises(OutputPathError, match=r"tiny-var\.pth exists"):
        export_official(folder, tmp_path / "official")
    assert export_official(folder, tmp_path / "official", overwrite=True)[0] == files[0]


def test_model_that_the_official_code_has_no_place_for_is_not_exported(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="tiny has no official layout"):
        export_official(read_model_folder(tiny_model_folder), tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "switch", [{"text_start": False}, {"position": "sincos"}, {"position": "none"}, {"modulation": "text"}]
)
def test_switches_that_the_official_code_does_not_have_are_not_exported(switch: dict[str, Any], tmp_path: Path) -> None:
    folder = convert(write_files(tmp_path / "official", TINY_STAR), TINY_STAR, tmp_path / "model")
    other = replace(folder, transformer=replace(folder.transformer, **switch))
    with pytest.raises(ModelFolderError, match="knows no such start map, positions or modulation"):
        export_official(other, tmp_path / "back")
    assert not (tmp_path / "back").exists()


# -- text towers ------------------------------------------------------------------------------------------------------


def text_folder(path: Path, width: int) -> Path:
    path.mkdir()
    (path / "config.json").write_text(f'{{"hidden_size": {width}}}')
    (path / "vocab.json").write_text("{}")
    (path / "notes.py").write_text("not needed")
    torch.save({"text_model.weight": torch.ones(3), "position_ids": torch.arange(4)}, path / "pytorch_model.bin")
    torch.save({}, path / "pytorch_model.fp16.bin")
    return path


def test_text_tower_is_copied_without_its_pickle(tmp_path: Path) -> None:
    tower = text_folder(tmp_path / "CLIP", 1024)
    model = PublishedModel(**{**vars(TINY_STAR), "text_encoder": TINY_STAR.text_encoder})
    wide = {**vars(model), "transformer": type(model.transformer)(**{**vars(model.transformer), "text_width": 1024})}
    folder = convert(
        write_files(tmp_path, PublishedModel(**wide)), PublishedModel(**wide), tmp_path / "model", text_encoder=tower
    )
    names = {path.name for path in (folder.path / "text_encoder").iterdir()}
    assert names == {"config.json", "vocab.json", "model.safetensors"}
    assert load_file(folder.path / "text_encoder" / "model.safetensors")["position_ids"].tolist() == [0, 1, 2, 3]
    assert folder.text_encoder is not None
    assert (folder.text_encoder.kind, folder.text_encoder.source) == ("clip", "text_encoder")


def test_of_a_whole_pipeline_only_the_tower_is_copied(tmp_path: Path) -> None:
    root = tmp_path / "stable-diffusion"
    (root / "unet").mkdir(parents=True)
    (root / "unet" / "model.safetensors").write_bytes(b"gigabytes")
    (root / "model_index.json").write_text("{}")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "merges.txt").write_text("")
    text_folder(root / "text_encoder", 1024)
    copy_text_folder(root, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    tower = {f"text_encoder/{name}" for name in ("config.json", "vocab.json", "model.safetensors")}
    assert names == {*tower, "tokenizer/merges.txt"}


def test_text_tower_of_another_width_is_refused_before_work(tmp_path: Path) -> None:
    tower = text_folder(tmp_path / "CLIP", 768)
    with pytest.raises(TextEncoderError, match="is 768 wide, expected 1024"):
        convert(write_files(tmp_path, TINY_STAR), TINY_STAR, tmp_path / "model", text_encoder=tower)


# -- files that are not what they should be ---------------------------------------------------------------------------


class Attack:
    """Pickles as a call."""

    def __init__(self, call: Callable[..., object], *arguments: object):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("is_archive", [True, False])
def test_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, is_archive: bool) -> None:
    _, vqvae = write_files(tmp_path, TINY_VAR)
    evil, proof = tmp_path / "evil.pth", tmp_path / "ran"
    content = {**official_state(TINY_VAR.transformer), "more": Attack(os.system, f"touch {proof}")}
    torch.save(content, evil, _use_new_zipfile_serialization=is_archive)
    error = refusal(evil, vqvae)
    assert not proof.exists()
    assert "evil.pth: " in str(error)
    if is_archive:
        assert "asks to use posix.system" in str(error)
        assert "refused, and nothing in it was run" in str(error)


def test_text_tower_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    tower, proof = text_folder(tmp_path / "CLIP", 1024), tmp_path / "ran"
    torch.save({"a": Attack(os.system, f"touch {proof}")}, tower / "pytorch_model.bin")
    files = write_files(tmp_path, TINY_STAR)
    with pytest.raises((WeightsFileError, ModelFolderError)):
        convert(files, TINY_STAR, tmp_path / "model", text_encoder=tower)
    assert not proof.exists()


def test_truncated_file_is_named_with_its_length(tmp_path: Path) -> None:
    transformer, vqvae = write_files(tmp_path, TINY_VAR)
    data = transformer.read_bytes()
    transformer.write_bytes(data[: len(data) // 2])
    assert str(refusal(transformer, vqvae)) == (
        f"tiny-var.pth: damaged or truncated after {len(data) // 2:,} bytes: "
        "its end, which lists the contents, is missing"
    )


def test_flipped_bit_in_a_tensor_is_named_with_both_checksums(tmp_path: Path) -> None:
    transformer, vqvae = write_files(tmp_path, TINY_VAR)
    data = bytearray(transformer.read_bytes())
    values = tensors_of(transformer)["blocks.1.ffn.fc1.weight"].numpy().tobytes()
    data[data.index(values) + 10] ^= 4
    transformer.write_bytes(data)
    with zipfile.ZipFile(transformer) as archive:
        expected = {f"{record.CRC:08x}" for record in archive.infolist() if record.file_size == len(values)}
    error = str(refusal(transformer, vqvae))
    assert error.startswith("tiny-var.pth: damaged at blocks.1.ffn.fc1.weight: its checksum is ")
    assert any(one in error for one in expected) or "which no record of it has" in error


def test_flipped_bit_in_the_list_of_contents_is_named(tmp_path: Path) -> None:
    transformer, vqvae = write_files(tmp_path, TINY_VAR)
    data = bytearray(transformer.read_bytes())
    data[data.index(b"lvl_embed")] ^= 1
    transformer.write_bytes(data)
    assert "tiny-var.pth: damaged or truncated" in str(refusal(transformer, vqvae))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<html>not found</html>", "22 bytes that are no PyTorch file"),
        (b"", "0 bytes that are no PyTorch file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer, not the file itself"),
    ],
)
def test_file_of_another_kind_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    transformer, vqvae = write_files(tmp_path, TINY_VAR)
    transformer.write_bytes(content)
    assert str(refusal(transformer, vqvae)) == f"tiny-var.pth: {sentence}"


def test_missing_file_and_missing_part_are_named(tmp_path: Path) -> None:
    transformer, vqvae = write_files(tmp_path, TINY_VAR)
    assert "there is no such file" in str(refusal(tmp_path / "nothing.pth", vqvae))
    assert "is a folder" in str(refusal(tmp_path, vqvae))
    error = refusal(transformer)
    assert str(error) == "none of the files holds the vqvae of tiny-var; given: tiny-var.pth"
    assert "vae_ch160v4096z32.pth" in str(error.hint)


def test_wrongly_named_file_is_told_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from star_cli.checkpoints import convert as module

    monkeypatch.setattr(module, "PUBLISHED", {model.name: model for model in (TINY_STAR, TINY_VAR)})
    files = write_files(tmp_path, TINY_VAR)
    files[0] = files[0].rename(tmp_path / "tiny-star.pth")
    error = refusal(*files, model=TINY_STAR)
    assert str(error).startswith("tiny-star.pth: is no transformer of tiny-star: missing ")
    assert str(error).endswith("; it holds the weights of tiny-var")
    assert error.hint == "convert it --as tiny-var"


def test_snapshot_of_another_schedule_is_refused_though_all_shapes_fit(tmp_path: Path) -> None:
    files = write_files(tmp_path, TINY_STAR)
    torch.save(snapshot(official_state(TINY_STAR.transformer), None, "1_3_4"), files[0])
    error = refusal(*files, model=TINY_STAR)
    assert str(error) == "tiny-star.pth: was trained with the scales 1 3 4, tiny-star has 1 2 4"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("head.bias"), "missing head.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "holds extra, which it does not have"),
        (
            lambda state: state.update({"head.bias": torch.zeros(17)}),
            r"head.bias is float32 of shape \[17\], expected \[16\]",
        ),
        (
            lambda state: state.update({"head.bias": torch.zeros(16, dtype=torch.int64)}),
            r"head.bias is int64 of shape \[16\], expected \[16\]",
        ),
        (
            lambda state: state["blocks.0.attn.zero_k_bias"].fill_(1),
            "blocks.0.attn.zero_k_bias is not what it should be .keys carry no bias; always zero.",
        ),
        (lambda state: state["lvl_1L"].fill_(1), "lvl_1L is not what it should be"),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], sentence: str
) -> None:
    files = write_files(tmp_path, TINY_VAR)
    state = tensors_of(files[0])
    change(state)
    torch.save(state, files[0])
    with pytest.raises(WeightsFileError, match=f"tiny-var.pth: .*{sentence}"):
        convert(files, TINY_VAR, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_value_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path, TINY_VAR)
    state = tensors_of(files[0])
    state["pos_start"][0, 0, 0] = 1e30
    torch.save(state, files[0])
    convert(files, TINY_VAR, tmp_path / "wide")
    with pytest.raises(ModelFolderError, match="start_position would hold values that are not finite in"):
        convert(files, TINY_VAR, tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half").exists()


def test_old_form_of_pickle_is_read_too(tmp_path: Path) -> None:
    files = write_files(tmp_path, TINY_VAR)
    torch.save(tensors_of(files[0]), files[0], _use_new_zipfile_serialization=False)
    assert open_official(files[0]).parts == ("transformer",)
    assert convert(files, TINY_VAR, tmp_path / "model").hash


def test_verifying_names_each_damaged_file(tmp_path: Path) -> None:
    folder = convert(write_files(tmp_path, TINY_STAR), TINY_STAR, tmp_path / "model")
    (folder.path / "vqvae.safetensors").unlink()
    data = bytearray((folder.path / "transformer.safetensors").read_bytes())
    data[-1] ^= 1
    (folder.path / "transformer.safetensors").write_bytes(data)
    found = {one.file: one.problem for one in verify_folder(read_model_config(folder.path))}
    assert found["unused.safetensors"] is None
    assert "vqvae.safetensors: missing" in str(found["vqvae.safetensors"])
    assert "transformer.safetensors: hash is " in str(found["transformer.safetensors"])


def test_folder_without_text_draws_no_prompts(tmp_path: Path) -> None:
    folder = convert(write_files(tmp_path, TINY_VAR), TINY_VAR, tmp_path / "model")
    assert folder.text_encoder is None
    assert read_model_folder(folder.path).text_encoder is None
    with pytest.raises(ModelFolderError, match="draws classes and has no text encoder"):
        folder.load_text_encoder()
