"""Published files become a model folder: each checked against its model, then written tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import star_cli
from star_cli.checkpoints.folder import TEXT_FOLDER, TRANSFORMER, UNUSED_FILE, VQVAE, ModelFolder, read_model_folder
from star_cli.checkpoints.layouts import STABLE_HEAD
from star_cli.checkpoints.official import OfficialFile, OfficialState, Part, open_official
from star_cli.checkpoints.published import PUBLISHED, PublishedModel
from star_cli.checkpoints.record import FileRecord
from star_cli.checkpoints.shards import LARGEST_FILE, Read, write_shards
from star_cli.checkpoints.tensors import listed, outline_of
from star_cli.checkpoints.text_tower import check_text_folder, copy_text_folder
from star_cli.checkpoints.translate import Place, official_places
from star_cli.checkpoints.writing import check_target, complete_folder, new_folder
from star_cli.errors import WeightsFileError
from star_cli.models.config import TextEncoderConfig, TransformerConfig, VQVAEConfig

OnBytes = Callable[[str, int, int], None]
"""Told what is being written, bytes done, and bytes in all."""


@dataclass(frozen=True)
class Matched:
    """One state dict of an official file, checked by names and shapes against what a model needs."""

    file: OfficialFile
    part: Part
    config: TransformerConfig | VQVAEConfig
    places: Mapping[str, Place]
    """By official key."""

    def open(self) -> OfficialState:
        """The tensors, mapped anew."""
        return self.file.state(self.part)


def convert(
    files: Sequence[Path],
    model: PublishedModel,
    out: Path,
    *,
    text_encoder: Path | None = None,
    dtype: torch.dtype = torch.float32,
    origin: Mapping[str, Any] | None = None,
    on_bytes: OnBytes | None = None,
    largest: int = LARGEST_FILE,
) -> ModelFolder:
    """Write a model folder from official files. Takes no more memory than the largest tensor and one file of output.

    Args:
        files: the transformer's file and the VQVAE's, in any order; a training snapshot holds both.
        model: what they are to be; anything else is refused.
        out: the model folder; one that is there is replaced when the new one is complete.
        text_encoder: folder of the text tower's files, copied; a hub name is stored when None.
        dtype: of the stored tensors, except those that decide tokens.
        origin: where the files are from; plain data for the provenance.
        on_bytes: told after each tensor.
        largest: bytes of tensors in one file.
    Raises:
        WeightsFileError: a file is damaged, missing, of another model, or asks to run code.
        ModelFolderError: `out` holds something else or cannot be written, or a value is not finite in `dtype`.
        TextEncoderError: `text_encoder` is no such tower.
    """
    check_target(out)
    opened = [open_official(path) for path in files]
    transformer = _match_transformer(_pick(opened, "transformer", model), model)
    vqvae = _match(_pick(opened, "vqvae", model), "vqvae", model.vqvae, model)
    text = _text_config(model, text_encoder)
    if text_encoder is not None and text is not None:
        check_text_folder(text_encoder, text)
    folder = ModelFolder(
        path=out,
        name=model.name,
        transformer=_as_transformer(transformer.config),
        vqvae=model.vqvae,
        text_encoder=text,
        schedules={model.resolution: model.schedule},
        default_resolution=model.resolution,
        sampling=model.sampling,
        licence=model.licence,
        provenance=_provenance(model, (transformer, vqvae), origin),
        files={},
    )
    with new_folder(out) as new:
        records: dict[str, FileRecord] = {}
        for stem, matched in ((TRANSFORMER, transformer), (VQVAE, vqvae)):
            records |= _write(new, stem, matched, dtype, on_bytes, largest)
        records |= _write_unused(new, (transformer, vqvae))
        if text_encoder is not None and text is not None:
            copy_text_folder(text_encoder, new / TEXT_FOLDER)
        complete_folder(new, folder, records, _card(model, folder))
    return read_model_folder(out)


# -- which file is which, and is it the right one ---------------------------------------------------------------------


def _pick(opened: Sequence[OfficialFile], part: Part, model: PublishedModel) -> OfficialFile:
    """The file that holds a part; one that holds nothing else goes before a snapshot's copy."""
    holding = sorted((file for file in opened if part in file.parts), key=lambda file: len(file.parts))
    if not holding:
        wanted = model.vqvae_file if part == "vqvae" else model.transformer_file or "the transformer's snapshot"
        given = ", ".join(file.path.name for file in opened) or "none"
        raise WeightsFileError(
            f"none of the files holds the {part} of {model.name}; given: {given}", f"give {wanted}, too"
        )
    if len(holding) > 1 and len(holding[1].parts) == len(holding[0].parts):
        raise WeightsFileError(f"both {holding[0].path.name} and {holding[1].path.name} hold a {part}", "give one")
    return holding[0]


def _match_transformer(file: OfficialFile, model: PublishedModel) -> Matched:
    """The transformer, its refinement head as the file has it: keys tell, not the name."""
    if file.sides is not None and file.sides != model.schedule.sides:
        raise WeightsFileError(
            f"{file.path.name}: was trained with the scales {_words(file.sides)}, "
            f"{model.name} has {_words(model.schedule.sides)}",
            _suggestion([other.name for other in PUBLISHED.values() if other.schedule.sides == file.sides]),
        )
    config = model.transformer
    held = any(key.startswith(STABLE_HEAD) for key in file.state("transformer").tensors)
    if held and not config.stable_head and config.conditioning == "text":
        config = TransformerConfig.from_dict({**config.to_dict(), "stable_head": True})
    return _match(file, "transformer", config, model)


def _match(file: OfficialFile, part: Part, config: TransformerConfig | VQVAEConfig, model: PublishedModel) -> Matched:
    """Names, shapes and kinds of all tensors, none of them read.

    Raises:
        WeightsFileError: the file is of another model; says of which, where it is known.
    """
    found = file.state(part).tensors
    places = official_places(config, model.schedule)
    if not (problem := _difference(found, places)):
        return Matched(file, part, config, places)
    fitting = [other.name for other in PUBLISHED.values() if part == "transformer" and _fits(found, file, other)]
    looks = f"; it holds the weights of {' or '.join(fitting)}" if fitting else ""
    raise WeightsFileError(f"{file.path.name}: is no {part} of {model.name}: {problem}{looks}", _suggestion(fitting))


def _difference(found: Mapping[str, Tensor], places: Mapping[str, Place]) -> str:
    """What does not fit, in words; "" when all does."""
    if wrong := [key for key, place in places.items() if key in found and not _same(found[key], place)]:
        shapes = [
            f"{key} is {_kind(found[key])} of shape {list(found[key].shape)}, expected {list(places[key].shape)}"
            for key in wrong
        ]
        return listed(shapes)
    if missing := [key for key in places if key not in found]:
        return f"missing {listed(missing)}"
    if foreign := [key for key in found if key not in places]:
        return f"holds {listed(foreign)}, which it does not have"
    return ""


def _same(tensor: Tensor, place: Place) -> bool:
    skipped = 1 if place.row.free_rows else 0
    is_float = place.refill is None or place.refill.is_floating_point()
    return (
        tensor.shape[skipped:] == torch.Size(place.shape[skipped:])
        and tensor.ndim == len(place.shape)
        and tensor.is_floating_point() == is_float
    )


def _fits(found: Mapping[str, Tensor], file: OfficialFile, other: PublishedModel) -> bool:
    schedules = file.sides is None or file.sides == other.schedule.sides
    return schedules and not _difference(found, official_places(other.transformer, other.schedule))


def _suggestion(names: Sequence[str]) -> str:
    return f"convert it --as {' or '.join(names)}" if names else "download the file again, or give the right one"


# -- writing ----------------------------------------------------------------------------------------------------------


def _write(
    new: Path, stem: str, matched: Matched, dtype: torch.dtype, on_bytes: OnBytes | None, largest: int
) -> dict[str, FileRecord]:
    ours = {place.ours: key for key, place in matched.places.items() if place.ours is not None}

    def source() -> Read:
        state = matched.open()
        return lambda name: matched.places[ours[name]].to_ours(state.read(ours[name]))

    told = None if on_bytes is None else lambda done, total: on_bytes(stem, done, total)
    return write_shards(new, stem, outline_of(matched.config, dtype), source, told, largest)


def _write_unused(new: Path, parts: Sequence[Matched]) -> dict[str, FileRecord]:
    """Keep what follows from nothing; what should follow from the config is checked to do so, and left out."""
    kept: dict[str, Tensor] = {}
    for matched in parts:
        state = matched.open()
        for key, place in matched.places.items():
            if place.refill is None:
                continue
            tensor = state.read(key)
            if place.row.kept:
                kept[f"{matched.part}.{key}"] = tensor
            elif not torch.equal(tensor.to(place.refill.dtype), place.refill):
                raise WeightsFileError(
                    f"{matched.file.path.name}: {key} is not what it should be ({place.row.why})",
                    "the file is of another model than its name and shapes say",
                )
    stem = UNUSED_FILE.removesuffix(".safetensors")
    return write_shards(new, stem, kept, lambda: kept.__getitem__) if kept else {}


def _text_config(model: PublishedModel, folder: Path | None) -> TextEncoderConfig | None:
    if model.text_encoder is None:
        if folder is not None:
            raise WeightsFileError(f"{model.name} draws classes and reads no text", "leave --text-encoder away")
        return None
    return model.text_reference if folder is None else replace(model.text_encoder, source=TEXT_FOLDER)


def _as_transformer(config: TransformerConfig | VQVAEConfig) -> TransformerConfig:
    assert isinstance(config, TransformerConfig)
    return config


def _provenance(model: PublishedModel, parts: Sequence[Matched], origin: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "published_as": model.name,
        "repository": model.repository,
        "converted_from": {matched.part: matched.file.path.name for matched in parts},
        "converted_by": f"star-cli {star_cli.__version__}",
        **(origin or {}),
    }


def _card(model: PublishedModel, folder: ModelFolder) -> str:
    text = folder.text_encoder
    reads = "ImageNet classes" if text is None else f"text through {text.kind} ({text.source})"
    return (
        f"# {model.name}\n\n{model.title}. Converted by star-cli from the authors' weights "
        f"({model.repository} on the hub); nothing was trained.\n\n"
        f"- draws {model.resolution} pixels, scales {_words(model.schedule.sides)}\n"
        f"- reads {reads}\n- licence of the weights: {model.licence}\n"
        "- where each file came from: `provenance` in config.json\n"
    )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _words(sides: Sequence[int]) -> str:
    return " ".join(map(str, sides))
