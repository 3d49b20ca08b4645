"""Model folders: what goes in comes out, and whatever is wrong with one is said before a weight is used."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from star_cli.checkpoints import tensors
from star_cli.checkpoints.folder import ModelFolder, read_model_folder
from star_cli.checkpoints.record import FileRecord
from star_cli.checkpoints.writing import write_model_folder
from star_cli.errors import ModelFolderError, TextEncoderError
from star_cli.generation.options import SamplingOptions
from star_cli.models.schedule import ScaleSchedule
from star_cli.pipeline import StarPipeline

TRANSFORMER, VQVAE, TEXT = "transformer.safetensors", "vqvae.safetensors", "text_encoder/open_clip_model.safetensors"


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def edit_tensors(folder: Path, file: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change a file's tensors and record its new hash, as somebody would who builds a folder by hand."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    record = FileRecord.of(folder / file)
    edit_config(folder, lambda values: values["files"].update({file: vars(record)}))


def flip_byte(file: Path, position: int = -5) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def rewrite(folder: ModelFolder, path: Path, **changes: Any) -> ModelFolder:
    """The same model, written once more with something changed."""
    values = {
        "name": folder.name,
        "transformer": folder.load_transformer(),
        "vqvae": folder.load_vqvae(),
        "text_encoder_folder": folder.path / "text_encoder",
        "text_encoder_config": folder.text_encoder,
        "schedules": folder.schedules,
        "sampling": folder.sampling,
        "licence": folder.licence,
        "provenance": folder.provenance,
        "model_card": "# again\n",
    }
    return write_model_folder(path, **{**values, **changes})


def test_what_was_written_is_read(tiny_model_folder: Path, tmp_path: Path) -> None:
    first = read_model_folder(tiny_model_folder)
    again = rewrite(first, tmp_path / "again")
    assert again.hash == first.hash
    assert again.transformer == first.transformer
    assert again.vqvae == first.vqvae
    assert again.text_encoder == first.text_encoder
    assert dict(again.schedules) == {32: ScaleSchedule((1, 2, 4)), 64: ScaleSchedule((1, 2, 4, 8))}
    assert again.sampling == SamplingOptions(guidance=2.0, top_k=12, top_p=0.95)
    assert again.default_resolution == 32
    assert again.files == first.files
    assert (again.path / "README.md").read_text() == "# again\n"


def test_known_words_are_kept_and_make_no_other_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    first = read_model_folder(tiny_model_folder)
    told = rewrite(first, tmp_path / "told", words=frozenset({"cat", "a"}))
    assert (first.words, told.words) == (None, {"cat", "a"})
    assert told.hash == first.hash


def test_every_loaded_file_is_recorded(tiny_model_folder: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    assert set(folder.files) == {TRANSFORMER, VQVAE, TEXT, "text_encoder/open_clip_config.json"}
    assert folder.size_bytes == sum((tiny_model_folder / name).stat().st_size for name in folder.files)


def test_hash_tells_models_apart_but_not_their_names(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    shorter = {32: folder.schedules[32]}
    assert rewrite(folder, tmp_path / "named", name="other").hash == folder.hash
    assert rewrite(folder, tmp_path / "shorter", schedules=shorter).hash != folder.hash
    transformer = folder.load_transformer()
    transformer.start_position.add_(1)
    assert rewrite(folder, tmp_path / "trained", transformer=transformer).hash != folder.hash


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_decides_tokens_stays_float32_however_stored_or_loaded(
    tiny_model_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = rewrite(read_model_folder(tiny_model_folder), tmp_path / "half", dtype=dtype)
    assert load_file(half.path / VQVAE)["quantizer.codebook.weight"].dtype == torch.float32
    assert load_file(half.path / TRANSFORMER)["start_position"].dtype == dtype
    transformer, vqvae = half.load_transformer("cpu", dtype), half.load_vqvae("cpu", dtype)
    assert transformer.head.weight.dtype == torch.float32
    assert transformer.blocks[0].self_attention.qkv.weight.dtype == dtype
    assert {parameter.dtype for parameter in vqvae.quantizer.parameters()} == {torch.float32}
    assert vqvae.decoder.head.weight.dtype == dtype
    original = read_model_folder(tiny_model_folder).load_vqvae()
    assert torch.equal(vqvae.quantizer.codebook.weight, original.quantizer.codebook.weight)


def test_half_stored_model_loads_as_float32_and_draws(tiny_model_folder: Path, tmp_path: Path) -> None:
    rewrite(read_model_folder(tiny_model_folder), tmp_path / "half", dtype=torch.float16)
    pipe = StarPipeline.from_pretrained(tmp_path / "half", device="cpu")
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.float32}
    assert pipe("a red circle")[0].pixels.shape == (32, 32, 3)


class CountedFile:
    """`safe_open`, which counts how many bytes of the tensors it gave are still held by anybody."""

    held = 0
    most = 0
    pointers: ClassVar[dict[str, int]] = {}

    def __init__(self, path: Path, framework: str):
        self._opened = safe_open(path, framework=framework)

    def __enter__(self) -> CountedFile:
        self._file = self._opened.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.__exit__(*error)

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def get_slice(self, name: str) -> Any:
        return self._file.get_slice(name)

    def get_tensor(self, name: str) -> Tensor:
        kind = type(self)
        tensor = self._file.get_tensor(name)
        kind.pointers[name] = tensor.data_ptr()
        kind.held += tensor.nbytes
        kind.most = max(kind.most, kind.held)
        weakref.finalize(tensor, kind._let_go, tensor.nbytes)
        return tensor

    @classmethod
    def _let_go(cls, size: int) -> None:
        cls.held -= size


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountedFile]:
    monkeypatch.setattr(CountedFile, "held", 0)
    monkeypatch.setattr(CountedFile, "most", 0)
    monkeypatch.setattr(CountedFile, "pointers", {})
    monkeypatch.setattr(tensors, "safe_open", CountedFile)
    return CountedFile


def test_weights_in_their_own_dtype_are_used_where_the_file_is_mapped(
    tiny_model_folder: Path, counted: type[CountedFile]
) -> None:
    transformer = read_model_folder(tiny_model_folder).load_transformer()
    found = {name: tensor.data_ptr() for name, tensor in transformer.state_dict().items()}
    assert found == counted.pointers


def test_weights_in_another_dtype_are_turned_one_by_one(
    tiny_model_folder: Path, tmp_path: Path, counted: type[CountedFile]
) -> None:
    half = rewrite(read_model_folder(tiny_model_folder), tmp_path / "half", dtype=torch.bfloat16)
    counted.most = 0
    transformer = half.load_transformer()
    stays = sum(tensor.nbytes for name, tensor in transformer.state_dict().items() if name.startswith("head."))
    largest = max(tensor.nbytes for tensor in transformer.state_dict().values())
    assert 0 < counted.most <= stays + 2 * largest


def test_loaded_models_are_frozen_and_in_evaluation_mode(tiny_model_folder: Path) -> None:
    transformer = read_model_folder(tiny_model_folder).load_transformer()
    assert not transformer.training
    assert not any(parameter.requires_grad for parameter in transformer.parameters())


# -- files that are not what they were --------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [TRANSFORMER, VQVAE, TEXT])
def test_missing_file_is_named(own_model_folder: Path, file: str) -> None:
    (own_model_folder / file).unlink()
    with pytest.raises(ModelFolderError, match=f"{Path(file).name}: missing in") as caught:
        read_model_folder(own_model_folder)
    assert caught.value.hint


@pytest.mark.parametrize("file", [TRANSFORMER, VQVAE, TEXT])
def test_truncated_file_is_named_with_both_sizes(own_model_folder: Path, file: str) -> None:
    data = (own_model_folder / file).read_bytes()
    (own_model_folder / file).write_bytes(data[:-1000])
    with pytest.raises(ModelFolderError) as caught:
        read_model_folder(own_model_folder)
    assert str(caught.value) == f"{Path(file).name}: {len(data) - 1000:,} bytes, expected {len(data):,}"


@pytest.mark.parametrize("file", [TRANSFORMER, VQVAE, TEXT])
def test_flipped_byte_is_found_before_a_tensor_is_used(own_model_folder: Path, file: str) -> None:
    expected = FileRecord.of(own_model_folder / file).sha256
    flip_byte(own_model_folder / file)
    found = FileRecord.of(own_model_folder / file).sha256
    with pytest.raises(ModelFolderError) as caught:
        StarPipeline.from_pretrained(own_model_folder)
    assert str(caught.value) == f"{Path(file).name}: hash is {found[:12]}..., expected {expected[:12]}..."


def test_flipped_byte_in_a_header_is_an_error_too(own_model_folder: Path) -> None:
    for position in (0, 7, 8, 20):
        flip_byte(own_model_folder / VQVAE, position)
        with pytest.raises(ModelFolderError, match=r"vqvae\.safetensors: "):
            read_model_folder(own_model_folder).load_vqvae()
        flip_byte(own_model_folder / VQVAE, position)
    read_model_folder(own_model_folder).load_vqvae()


def test_file_that_is_no_safetensors_is_named(own_model_folder: Path) -> None:
    (own_model_folder / VQVAE).write_bytes(b"not tensors")
    record = FileRecord.of(own_model_folder / VQVAE)
    edit_config(own_model_folder, lambda values: values["files"].update({VQVAE: vars(record)}))
    with pytest.raises(ModelFolderError, match=r"vqvae\.safetensors: cannot be read as safetensors"):
        read_model_folder(own_model_folder).load_vqvae()


def test_file_of_the_text_encoder_that_nobody_recorded_is_refused(own_model_folder: Path) -> None:
    (own_model_folder / "text_encoder" / "tokenizer.json").write_text("{}")
    (own_model_folder / "text_encoder" / ".DS_Store").write_text("")
    with pytest.raises(
        ModelFolderError, match=r"text_encoder/tokenizer\.json is in the folder, but not among the files"
    ):
        read_model_folder(own_model_folder).load_text_encoder()


# -- tensors that do not belong ---------------------------------------------------------------------------------------


def test_missing_tensor_is_named(own_model_folder: Path) -> None:
    edit_tensors(own_model_folder, TRANSFORMER, lambda tensors: tensors.pop("head.bias"))
    with pytest.raises(ModelFolderError, match=r"^transformer\.safetensors: missing head\.bias$"):
        read_model_folder(own_model_folder).load_transformer()


def test_foreign_tensors_are_named_and_counted(own_model_folder: Path) -> None:
    foreign = {f"ema.{index}": torch.zeros(1) for index in range(6)}
    edit_tensors(own_model_folder, VQVAE, lambda tensors: tensors.update(foreign))
    with pytest.raises(ModelFolderError) as caught:
        read_model_folder(own_model_folder).load_vqvae()
    message = "vqvae.safetensors: holds ema.0, ema.1, ema.2, ema.3 and 2 more, which the model does not have"
    assert str(caught.value) == message


def test_wrong_shape_is_named_with_both_shapes(own_model_folder: Path) -> None:
    edit_tensors(own_model_folder, TRANSFORMER, lambda tensors: tensors.update({"head.bias": torch.zeros(17)}))
    with pytest.raises(ModelFolderError, match=r"head\.bias of shape \[17\], expected \[16\]"):
        read_model_folder(own_model_folder).load_transformer()


def test_tensor_that_is_no_float_is_named(own_model_folder: Path) -> None:
    whole = {"head.bias": torch.zeros(16, dtype=torch.int64)}
    edit_tensors(own_model_folder, TRANSFORMER, lambda tensors: tensors.update(whole))
    with pytest.raises(ModelFolderError, match=r"head\.bias \(I64\), expected F32, F16, BF16"):
        read_model_folder(own_model_folder).load_transformer()


def test_foreign_tensor_in_the_text_encoder_is_named(own_model_folder: Path) -> None:
    edit_tensors(own_model_folder, TEXT, lambda tensors: tensors.update({"transformer.extra": torch.zeros(1)}))
    with pytest.raises(TextEncoderError, match=r"transformer\.extra"):
        read_model_folder(own_model_folder).load_text_encoder()


# -- configs that cannot be meant -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda values: values.update(tranformer={}), "no field is called tranformer"),
        (lambda values: values.pop("licence"), "missing licence"),
        (lambda values: values["transformer"].update(dpeth=2), "TransformerConfig has no field dpeth"),
        (lambda values: values["transformer"].pop("depth"), "TransformerConfig: .*depth"),
        (lambda values: values["transformer"].update(depth="two"), "depth|'<=?' not supported"),
        (lambda values: values["vqvae"].update(codebook_size=32), "predicts 16 codes of width 8, the vqvae has 32"),
        (lambda values: values["text_encoder"].update(width=64), "text features 32 wide, the text encoder gives 64"),
        (
            lambda values: values["resolutions"].update({"48": {"sides": [1, 2, 4], "first_level": 0}}),
            "resolution 48 ends at 32 pixels",
        ),
        (
            lambda values: values["resolutions"].update({"32": {"sides": [1, 2, 4], "first_level": 2}}),
            "uses level 4, the transformer has 4",
        ),
        (
            lambda values: values["resolutions"].update({"big": {"sides": [1], "first_level": 0}}),
            "a value cannot be used: .*'big'",
        ),
        (lambda values: values.update(resolutions={}), "resolutions is empty"),
        (lambda values: values.update(resolutions=7), "a value cannot be used"),
        (lambda values: values.update(default_resolution=48), "no resolution 48 to be the default"),
        (lambda values: values["sampling"].update(top_k=0), "top-k must be"),
        (lambda values: values["files"].pop("vqvae.safetensors"), "does not list vqvae.safetensors"),
        (
            lambda values: values["files"].update({"../x": {"sha256": "", "size_bytes": 0}}),
            "not inside the model folder",
        ),
        (lambda values: values["files"].update({"x": {"sha256": ""}}), "a value cannot be used: .*size_bytes"),
    ],
)
def test_config_that_cannot_be_meant_is_an_error_of_the_folder(
    own_model_folder: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    edit_config(own_model_folder, change)
    with pytest.raises(ModelFolderError, match=rf"^config\.json: .*({sentence})"):
        read_model_folder(own_model_folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not valid JSON"),
        ("[]", 'not of format "star-cli"'),
        ('{"model_type": "clip"}', 'not of format "star-cli"'),
        ('{"format": "star-cli", "format_version": 2}', "format_version is 2, this star-cli reads 1"),
    ],
)
def test_file_that_is_no_config_of_ours_is_an_error(own_model_folder: Path, text: str, sentence: str) -> None:
    (own_model_folder / "config.json").write_text(text)
    with pytest.raises(ModelFolderError, match=sentence):
        read_model_folder(own_model_folder)


def test_folder_without_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json: missing in"):
        read_model_folder(tmp_path)


# -- whole or not at all ----------------------------------------------------------------------------------------------


def test_older_folder_is_replaced_whole(tiny_model_folder: Path, own_model_folder: Path) -> None:
    (own_model_folder / "text_encoder" / "left-over.txt").write_text("from an older version")
    rewrite(read_model_folder(tiny_model_folder), own_model_folder, name="newer")
    assert read_model_folder(own_model_folder).name == "newer"
    assert not (own_model_folder / "text_encoder" / "left-over.txt").exists()
    assert [path.name for path in own_model_folder.parent.iterdir()] == ["own"]


def test_model_folder_can_be_rewritten_from_itself(own_model_folder: Path) -> None:
    folder = read_model_folder(own_model_folder)
    assert rewrite(folder, own_model_folder).hash == folder.hash
    read_model_folder(own_model_folder).load_text_encoder()


def test_failure_while_writing_leaves_the_older_folder(
    tiny_model_folder: Path, own_model_folder: Path, tmp_path: Path
) -> None:
    folder = read_model_folder(tiny_model_folder)
    before = {path: path.read_bytes() for path in own_model_folder.rglob("*") if path.is_file()}
    with pytest.raises(ModelFolderError, match="cannot be written"):
        rewrite(folder, own_model_folder, text_encoder_folder=tmp_path / "nowhere")
    broken = folder.load_vqvae()
    broken.decoder.head.bias.fill_(torch.nan)
    with pytest.raises(ModelFolderError, match=r"decoder\.head\.bias would hold values that are not finite"):
        rewrite(folder, own_model_folder, vqvae=broken)
    assert before == {path: path.read_bytes() for path in own_model_folder.rglob("*") if path.is_file()}
    assert [path.name for path in own_model_folder.parent.iterdir()] == ["own"]


def test_values_that_do_not_fit_float16_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = read_model_folder(tiny_model_folder)
    large = folder.load_transformer()
    large.start_position[0, 0, 0] = 1e6
    with pytest.raises(ModelFolderError, match="start_position would hold values that are not finite in"):
        rewrite(folder, tmp_path / "large", transformer=large, dtype=torch.float16)
    assert not (tmp_path / "large").exists()


def test_folder_of_other_things_is_not_replaced(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ModelFolderError, match="exists and is no model folder"):
        rewrite(read_model_folder(tiny_model_folder), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_folder_of_another_program_is_not_replaced(tiny_model_folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "clip"
    own.mkdir()
    (own / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')
    (own / "model.bin").write_text("weights")
    with pytest.raises(ModelFolderError, match="exists and is no model folder"):
        rewrite(read_model_folder(tiny_model_folder), own)
    assert (own / "model.bin").exists()


def test_what_a_link_leads_to_is_replaced(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    rewrite(read_model_folder(tiny_model_folder), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_model_folder(tmp_path / "disk").files


def test_an_interrupted_exchange_leaves_the_older_folder(
    tiny_model_folder: Path, own_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_model_folder(own_model_folder).hash
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rewrite(read_model_folder(tiny_model_folder), own_model_folder)
    assert read_model_folder(own_model_folder).hash == before


@pytest.mark.parametrize("change", [{"size_bytes": "12"}, {"sha256": None}, {"size_bytes": -1}])
def test_a_record_that_is_none_is_refused(own_model_folder: Path, change: dict[str, Any]) -> None:
    config = own_model_folder / "config.json"
    values = json.loads(config.read_text())
    values["files"]["vqvae.safetensors"] |= change
    config.write_text(json.dumps(values))
    with pytest.raises(ModelFolderError, match=r"vqvae.safetensors: sha256 must be text and size_bytes a number"):
        read_model_folder(own_model_folder)


def test_parts_that_do_not_fit_are_not_written(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="ends at 8 pixels"):
        rewrite(read_model_folder(tiny_model_folder), tmp_path / "odd", schedules={32: ScaleSchedule((1,))})
    assert not (tmp_path / "odd").exists()
