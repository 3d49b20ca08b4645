"""Weights between safetensors files and a model: checked from the files' headers, assigned strictly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from star_cli.checkpoints.record import FileRecord
from star_cli.checkpoints.shards import write_shards
from star_cli.errors import ModelFolderError
from star_cli.models.blank import blank
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE

Model = TypeVar("Model", StarTransformer, MultiScaleVQVAE)

FLOATS = ("F32", "F16", "BF16")
NAMES_SHOWN = 4
_OTHER_MODEL = "config.json and the weights are not of the same model"


def load_model(
    build: Callable[[], Model],
    files: Mapping[Path, FileRecord],
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """Build a model without memory, then hand it the files' tensors, one by one.

    Args:
        build: makes the model; called where new tensors are on the meta device.
        files: the safetensors file with its recorded hash and size, or the several that together hold the tensors.
        device: where the tensors go.
        dtype: as in the models' `set_compute_dtype`, which keeps float32 what decides tokens; float32 when None.
    Raises:
        ModelFolderError: a damaged file, a missing or foreign tensor, a wrong shape.
    """
    with blank():
        model = build()
    model.set_compute_dtype(dtype or torch.float32)
    outline = model.state_dict()
    for path, record in files.items():
        record.check_size(path)
    check_headers(list(files), outline)
    for path, record in files.items():
        record.check(path)
    tensors = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                tensors[name] = file.get_tensor(name).to(device, outline[name].dtype)
    model.load_state_dict(tensors, strict=True, assign=True)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not left, f"buffers that no file holds must be computed when used, not at construction: {left}"
    return model.eval().requires_grad_(False)


def check_headers(paths: Sequence[Path], outline: Mapping[str, Tensor]) -> None:
    """Compare the names and shapes that safetensors files declare with what a model has, reading no tensor.

    Raises:
        ModelFolderError: not a safetensors file, a missing or foreign tensor, a wrong shape, a tensor that is no float.
    """
    left = {name: tuple(tensor.shape) for name, tensor in outline.items()}
    for path in paths:
        found = _read_header(path)
        if foreign := sorted(set(found) - set(left)):
            raise ModelFolderError(f"{path.name}: holds {listed(foreign)}, which the model does not have", _OTHER_MODEL)
        if wrong := [name for name in sorted(found) if found[name][0] != left[name]]:
            shapes = [f"{name} of shape {list(found[name][0])}, expected {list(left[name])}" for name in wrong]
            raise ModelFolderError(f"{path.name}: {listed(shapes)}", _OTHER_MODEL)
        if strange := [f"{name} ({found[name][1]})" for name in sorted(found) if found[name][1] not in FLOATS]:
            raise ModelFolderError(f"{path.name}: {listed(strange)}, expected {', '.join(FLOATS)}", _OTHER_MODEL)
        left = {name: shape for name, shape in left.items() if name not in found}
    if left:
        names = paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}"
        raise ModelFolderError(f"{names}: missing {listed(sorted(left))}", _OTHER_MODEL)


def _read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path.name}: cannot be read as safetensors: {error}") from error


def stored_dtype(paths: Sequence[Path]) -> str:
    """Name of the dtype that most tensors of some files have: "float16".

    Raises:
        ModelFolderError: not a safetensors file.
    """
    found = Counter(dtype for path in paths for _, dtype in _read_header(path).values())
    return {"F16": "float16", "BF16": "bfloat16"}.get(found.most_common(1)[0][0], "float32")


def save_model(
    model: StarTransformer | MultiScaleVQVAE, folder: Path, stem: str, dtype: torch.dtype
) -> dict[str, FileRecord]:
    """Write a model's tensors as `dtype`, except those that decide tokens, which stay float32.

    Returns:
        Hash and size of each file, by its name.
    Raises:
        ModelFolderError: a value is not finite, or not in `dtype`.
    """
    state = model.state_dict()
    return write_shards(folder, stem, outline_of(model.config, dtype), lambda: state.__getitem__)


def outline_of(config: TransformerConfig | VQVAEConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state dict of a model on the meta device, in the dtypes in which `dtype` is stored."""
    with blank():
        model = StarTransformer(config) if isinstance(config, TransformerConfig) else MultiScaleVQVAE(config)
    model.set_compute_dtype(dtype)
    return model.state_dict()


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
