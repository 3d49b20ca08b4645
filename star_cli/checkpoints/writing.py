"""Writing a model folder: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from star_cli.checkpoints.folder import (
    CARD_FILE,
    CONFIG_FILE,
    TEXT_FOLDER,
    TRANSFORMER,
    VQVAE,
    ModelFolder,
    folder_to_config,
    is_model_folder,
    read_model_folder,
    text_files,
    usual_resolution,
)
from star_cli.checkpoints.record import FileRecord
from star_cli.checkpoints.tensors import save_model
from star_cli.errors import ModelFolderError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import TextEncoderConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE


def write_model_folder(
    path: Path | str,
    *,
    name: str,
    transformer: StarTransformer,
    vqvae: MultiScaleVQVAE,
    text_encoder_folder: Path | None,
    text_encoder_config: TextEncoderConfig | None,
    schedules: Mapping[int, ScaleSchedule],
    sampling: SamplingOptions,
    licence: str,
    provenance: Mapping[str, Any],
    model_card: str,
    dtype: torch.dtype = torch.float32,
    default_resolution: int | None = None,
    words: frozenset[str] | None = None,
) -> ModelFolder:
    """Write a model folder; one that is already there is replaced when the new one is complete.

    Args:
        path: the folder; its parents are made.
        name: what `star models` calls it.
        transformer: its weights and config.
        vqvae: its weights and config.
        text_encoder_folder: copied into the model folder; None when `text_encoder_config.source` is a hub name.
        text_encoder_config: how to load the text encoder; None for a model that draws classes.
        schedules: scale schedule of each resolution in pixels.
        sampling: this model's defaults.
        licence: of the weights, as an SPDX name.
        provenance: how the model came to be; plain data.
        model_card: Markdown, becomes `README.md`.
        dtype: of the stored tensors, except those that decide tokens.
        default_resolution: drawn when none is asked for; 256 if the model knows it, else the smallest.
        words: all that its captions used, where they are counted.
    Raises:
        ModelFolderError: the parts do not fit together, `path` holds something else, or writing fails.
    """
    path = Path(path)
    check_target(path)
    if text_encoder_folder is not None and text_encoder_config is not None:
        text_encoder_config = replace(text_encoder_config, source=TEXT_FOLDER)
    folder = ModelFolder(
        path=path,
        name=name,
        transformer=transformer.config,
        vqvae=vqvae.config,
        text_encoder=text_encoder_config,
        schedules=dict(schedules),
        default_resolution=default_resolution or usual_resolution(schedules),
        sampling=sampling,
        licence=licence,
        provenance=dict(provenance),
        files={},
        words=words,
    )
    with new_folder(path) as new:
        records = {
            **save_model(transformer, new, TRANSFORMER, dtype),
            **save_model(vqvae, new, VQVAE, dtype),
        }
        if text_encoder_folder is not None:
            shutil.copytree(text_encoder_folder, new / TEXT_FOLDER)
        complete_folder(new, folder, records, model_card)
    return read_model_folder(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` that takes its place when the block ends well, and goes when it does not.

    Raises:
        ModelFolderError: `path` holds something else than a model folder, or writing fails.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    check_target(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            yield new
            _move_into_place(new, path, Path(temporary, "old"))
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be written: {error.strerror or error}") from error


def complete_folder(new: Path, folder: ModelFolder, records: Mapping[str, FileRecord], model_card: str) -> None:
    """Write card and config beside the tensors, the text encoder's files recorded.

    Args:
        new: the folder from `new_folder`.
        folder: what it is to be; its `files` are filled in here.
        records: hash and size of each file of tensors.
        model_card: Markdown, becomes `README.md`.
    """
    (new / CARD_FILE).write_text(model_card, encoding="utf-8")
    files = {**records, **{name: FileRecord.of(new / name) for name in text_files(new)}}
    config = json.dumps(folder_to_config(replace(folder, files=files)), indent=2, ensure_ascii=False)
    (new / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")


def check_target(path: Path) -> None:
    """Refuse a path that holds something else than a model folder; long work asks this before it begins.

    Raises:
        ModelFolderError: it does.
    """
    if path.is_dir() and (is_model_folder(path) or not any(path.iterdir())):
        return
    if path.exists():
        raise ModelFolderError(f"{path} exists and is no model folder", "give another path, or move it away")


def _move_into_place(new: Path, path: Path, old: Path) -> None:
    """Rename `new` to `path`; what was there goes to `old`, and comes back when the rename fails."""
    for file in (*new.rglob("*"), new):
        _flush(file)
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have the disk hold what was written, before a rename makes it visible."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
