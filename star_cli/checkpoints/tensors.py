"""Weights between a safetensors file and a model: checked from the file's header, assigned strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from star_cli.checkpoints.record import FileRecord
from star_cli.errors import ModelFolderError
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE

Model = TypeVar("Model", StarTransformer, MultiScaleVQVAE)

FLOATS = ("F32", "F16", "BF16")
NAMES_SHOWN = 4
_OTHER_MODEL = "config.json and the weights are not of the same model"


def load_model(
    build: Callable[[], Model],
    path: Path,
    record: FileRecord,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """Build a model without memory, then hand it the file's tensors, one by one.

    Args:
        build: makes the model; called where new tensors are on the meta device.
        path: the safetensors file.
        record: its recorded hash and size.
        device: where the tensors go.
        dtype: as in the models' `set_compute_dtype`, which keeps float32 what decides tokens; float32 when None.
    Raises:
        ModelFolderError: a damaged file, a missing or foreign tensor, a wrong shape.
    """
    with torch.device("meta"):
        model = build()
    model.set_compute_dtype(dtype or torch.float32)
    outline = model.state_dict()
    record.check_size(path)
    check_header(path, {name: tuple(tensor.shape) for name, tensor in outline.items()})
    record.check(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).to(device, like.dtype) for name, like in outline.items()}
    model.load_state_dict(tensors, strict=True, assign=True)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not left, f"buffers that no file holds must be computed when used, not at construction: {left}"
    return model.eval().requires_grad_(False)


def check_header(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the names and shapes that a safetensors file declares with what a model has, reading no tensor.

    Raises:
        ModelFolderError: not a safetensors file, a missing or foreign tensor, a wrong shape, a tensor that is no float.
    """
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            found = {name: tuple(part.get_shape()) for name, part in slices.items()}
            types = {name: part.get_dtype() for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ModelFolderError(f"{path.name}: cannot be read as safetensors: {error}") from error
    if missing := sorted(set(expected) - set(found)):
        raise ModelFolderError(f"{path.name}: missing {_listed(missing)}", _OTHER_MODEL)
    if foreign := sorted(set(found) - set(expected)):
        raise ModelFolderError(f"{path.name}: holds {_listed(foreign)}, which the model does not have", _OTHER_MODEL)
    if wrong := [name for name in sorted(found) if found[name] != expected[name]]:
        shapes = [f"{name} of shape {list(found[name])}, expected {list(expected[name])}" for name in wrong]
        raise ModelFolderError(f"{path.name}: {_listed(shapes)}", _OTHER_MODEL)
    if strange := [f"{name} ({types[name]})" for name in sorted(found) if types[name] not in FLOATS]:
        raise ModelFolderError(f"{path.name}: {_listed(strange)}, expected {', '.join(FLOATS)}", _OTHER_MODEL)


def save_model(model: StarTransformer | MultiScaleVQVAE, path: Path, dtype: torch.dtype) -> None:
    """Write a model's tensors as `dtype`, except those that decide tokens, which stay float32.

    Raises:
        ModelFolderError: a value is not finite, or not in `dtype`.
    """
    with torch.device("meta"):
        outline = type(model)(model.config)  # type: ignore[arg-type]  # each class with its own config
    outline.set_compute_dtype(dtype)
    kept = {name: tensor.dtype for name, tensor in outline.state_dict().items()}
    tensors = {name: tensor.detach().to("cpu", kept[name]).contiguous() for name, tensor in model.state_dict().items()}
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ModelFolderError(f"{path.name}: {_listed(bad)} would hold values that are not finite in {dtype}")
    save_file(tensors, path, metadata={"format": "pt"})


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
