"""Weights between a safetensors file and a model: checked from the file's header, assigned strictly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from star_cli.errors import ModelFolderError

Model = TypeVar("Model", bound=nn.Module)

FLOATS = ("F32", "F16", "BF16")
NAMES_SHOWN = 4


@dataclass(frozen=True)
class FileRecord:
    """What `config.json` knows about a file."""

    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a file once, piece by piece."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return cls(digest.hexdigest(), path.stat().st_size)

    def check_size(self, path: Path) -> None:
        """Cheap: is the file there, and as long as it should be?

        Raises:
            ModelFolderError: it is not.
        """
        if not path.is_file():
            raise ModelFolderError(f"{path.name}: missing in {path.parent}", "copy or download the model folder again")
        if (found := path.stat().st_size) != self.size_bytes:
            raise ModelFolderError(
                f"{path.name}: {found:,} bytes, expected {self.size_bytes:,}", "copy or download the model folder again"
            )

    def check(self, path: Path) -> None:
        """Thorough: is every byte what it was when the folder was written?

        Raises:
            ModelFolderError: it is not.
        """
        self.check_size(path)
        if (found := FileRecord.of(path).sha256) != self.sha256:
            raise ModelFolderError(
                f"{path.name}: hash is {found[:12]}..., expected {self.sha256[:12]}...",
                "the file is damaged or was changed: copy or download the model folder again",
            )


def load_model(
    build: Callable[[], Model],
    path: Path,
    record: FileRecord,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    float32_parts: tuple[str, ...],
) -> Model:
    """Build a model without memory, then hand it the file's tensors, one by one.

    Args:
        build: makes the model; called where new tensors are on the meta device.
        path: the safetensors file.
        record: its recorded hash and size.
        device: where the tensors go.
        dtype: of the model's floating-point tensors.
        float32_parts: beginnings of the names that stay float32 whatever `dtype` says: they decide tokens.
    Raises:
        ModelFolderError: a damaged file, a missing or foreign tensor, a wrong shape.
    """
    with torch.device("meta"):
        model = build()
    record.check_size(path)
    check_header(path, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    record.check(path)

    def load(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(device)
        return tensor.to(device, torch.float32 if name.startswith(float32_parts) else dtype)

    with safe_open(path, framework="pt") as file:
        tensors = {name: load(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - no mapping
    model.load_state_dict(tensors, strict=True, assign=True)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"buffers that no file holds must be computed when used, not at construction: {left}"
    return model.eval().requires_grad_(False)


def check_header(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the names and shapes that a safetensors file declares with what a model has, reading no tensor.

    Raises:
        ModelFolderError: not a safetensors file, a missing or foreign tensor, a wrong shape, tensors that are no floats.
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


def save_model(model: nn.Module, path: Path, *, dtype: torch.dtype, float32_parts: tuple[str, ...]) -> None:
    """Write a model's tensors as `dtype`, except the parts that stay float32.

    Raises:
        ModelFolderError: a value is not finite, or does not fit `dtype`.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        kept = torch.float32 if name.startswith(float32_parts) else dtype
        tensors[name] = tensor.detach().to("cpu", kept).contiguous()
        if not tensors[name].isfinite().all():
            raise ModelFolderError(f"{name}: holds values that are not finite as {str(kept).removeprefix('torch.')}")
    save_file(tensors, path, metadata={"format": "pt"})


_OTHER_MODEL = "config.json and the weights are not of the same model"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"
