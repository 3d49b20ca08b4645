"""A model folder becomes the authors' files again: their code, and everything written for it, can load them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from star_cli.checkpoints.folder import TRANSFORMER, UNUSED_FILE, VQVAE, ModelFolder
from star_cli.checkpoints.published import PUBLISHED, VQVAE_FILE
from star_cli.checkpoints.tensors import check_headers, outline_of
from star_cli.checkpoints.translate import to_official
from star_cli.errors import ModelFolderError, OutputPathError
from star_cli.models.schedule import ScaleSchedule


def export_official(folder: ModelFolder, out: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the official files of a model.

    STAR's transformer is wrapped as its training code wraps it, `["trainer"]["var_wo_ddp"]`; VAR's and the VQVAE are
    plain state dicts. Tensors are float32, and those of a folder stored in float32 are mapped, not copied: little
    memory is needed.

    Args:
        folder: the model.
        out: where the files go; made when it is not there.
        overwrite: replace files that are there.
    Returns:
        The paths: transformer, VQVAE.
    Raises:
        ModelFolderError: damaged, or a model that the official code has no place for.
        OutputPathError: a file is there already, or cannot be written.
    """
    schedule = _only_schedule(folder)
    _check_switches(folder)
    star = folder.transformer.conditioning == "text"
    known = PUBLISHED.get(folder.name)
    targets = {
        TRANSFORMER: out / ((known and known.transformer_file) or f"{folder.file_name}.pth"),
        VQVAE: out / (known.vqvae_file if known else VQVAE_FILE),
    }
    for path in targets.values():
        if path.exists() and not overwrite:
            raise OutputPathError(f"{path} exists", "give another --out, or overwrite it with --force")
    for stem, path in targets.items():
        config = folder.transformer if stem == TRANSFORMER else folder.vqvae
        kept = _kept(folder, f"{stem}.")
        content: dict[str, Any] = dict(to_official(_tensors(folder, stem), config, schedule, kept))
        if stem == TRANSFORMER and star:
            trainer = {"config": {"patch_nums": list(schedule.sides)}, "var_wo_ddp": content}
            content = {"epoch": 0, "iter": 0, "trainer": trainer}
        _save_whole(content, path)
    return list(targets.values())


def _only_schedule(folder: ModelFolder) -> ScaleSchedule:
    schedules = list(folder.schedules.values())
    if len(schedules) != 1 or schedules[0].first_level or folder.vqvae.patch != 1:
        raise ModelFolderError(
            f"{folder.name} has no official layout: the authors' code knows one resolution a model, no folded pixels",
            "export a model that was converted from theirs, or trained to its shape",
        )
    return schedules[0]


def _check_switches(folder: ModelFolder) -> None:
    """The authors' code has fixed choices where some of our switches are: their tensors alone would not tell."""
    config = folder.transformer
    if not config.text_start or config.is_text_modulated or config.position in ("sincos", "none"):
        raise ModelFolderError(
            f"{folder.name} has no official layout: the authors' code knows no such start map, positions or modulation",
            "only models of the published kinds have one",
        )


def _tensors(folder: ModelFolder, stem: str) -> dict[str, Tensor]:
    """All tensors of a part, checked, in float32."""
    files = folder.weights(stem)
    config = folder.transformer if stem == TRANSFORMER else folder.vqvae
    for path, record in files.items():
        record.check(path)
    check_headers(list(files), outline_of(config))
    return {name: tensor.float() for path in files for name, tensor in _mapped(path).items()}


def _kept(folder: ModelFolder, part: str) -> Mapping[str, Tensor]:
    """What was left out of a part when it was converted, by its official keys."""
    if UNUSED_FILE not in folder.files:
        return {}
    folder.files[UNUSED_FILE].check(folder.path / UNUSED_FILE)
    tensors = _mapped(folder.path / UNUSED_FILE)
    return {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}


def _mapped(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _save_whole(content: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(dict(content), file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputPathError(f"{path}: cannot be written: {error.strerror or error}") from error
