"""Files of a published text tower: which of them a model folder needs, and tensors in pickles made safetensors."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from torch import Tensor

from star_cli.checkpoints.official import load_tensors
from star_cli.checkpoints.shards import write_shards
from star_cli.errors import TextEncoderError
from star_cli.models.config import TextEncoderConfig

SUFFIXES = (".json", ".txt", ".model", ".safetensors")
PARTS = ("text_encoder", "tokenizer")
"""Folders of a pipeline of many models that make the tower."""
PICKLE, SAFE = "pytorch_model.bin", "model.safetensors"


def wanted_text_files(names: list[str]) -> list[str]:
    """Of all files of a tower's folder, those that are needed: one form of the tensors, no second precision."""
    plain = [name for name in names if name.endswith(SUFFIXES) and ".fp16." not in name]
    safe = {Path(name).parent for name in plain if name.endswith(".safetensors")}
    pickles = [name for name in names if Path(name).name == PICKLE and Path(name).parent not in safe]
    return sorted(plain + pickles)


def check_text_folder(folder: Path, config: TextEncoderConfig) -> None:
    """Is there a tower of this width? Long work asks this before it begins.

    Raises:
        TextEncoderError: no.
    """
    if not folder.is_dir():
        raise TextEncoderError(f"text encoder folder {folder} is missing", "give the folder that holds its config.json")
    found = next((place for place in (folder / PARTS[0], folder) if (place / "config.json").is_file()), None)
    if found is None:
        raise TextEncoderError(f"text encoder folder {folder} has no config.json", "give the folder that holds it")
    try:
        values = json.loads((found / "config.json").read_text(encoding="utf-8"))
        width = values.get("hidden_size", values.get("d_model")) or values["text_config"]["hidden_size"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TextEncoderError(f"{found / 'config.json'}: is no config of a text tower") from error
    if width != config.width:
        raise TextEncoderError(
            f"text encoder folder {folder} is {width} wide, expected {config.width}",
            "use the text encoder that the model was trained with",
        )


def copy_text_folder(folder: Path, out: Path) -> None:
    """Copy what is needed; a pickle's tensors are stored as safetensors, so that the model folder holds no pickle.

    Args:
        folder: the tower's files, flat; or, as in Stable Diffusion, in `text_encoder/` and `tokenizer/`, beside which a
            whole other model may stand.
        out: made where it is not there.
    Raises:
        WeightsFileError: a pickle that is damaged or asks to run code.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if (folder / PARTS[0] / "config.json").is_file():
        names = [name for name in names if name.partition("/")[0] in PARTS]
    for name in wanted_text_files(names):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name == PICKLE:
            tensors = {key: value.contiguous() for key, value in load_tensors(folder / name).items()}
            _write_one(target.with_name(SAFE), tensors)
        else:
            shutil.copyfile(folder / name, target)


def _write_one(path: Path, tensors: dict[str, Tensor]) -> None:
    """One file, however large: transformers would look for an index beside several."""
    write_shards(path.parent, path.stem, tensors, lambda: tensors.__getitem__, largest=sys.maxsize)
