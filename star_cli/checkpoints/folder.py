"""The model folder: `config.json`, safetensors of transformer and VQVAE, the text encoder, the model card.

Everything a folder says is checked at the door: `read_model_folder` checks the config, and that each file is there and
whole in length; each `load_...` checks names, shapes and SHA-256 before the first tensor is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from star_cli.checkpoints.record import FileRecord, shard_names
from star_cli.errors import ModelFolderError, OptionError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import TextEncoderConfig, TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule

if TYPE_CHECKING:  # reading a config must not wait for torch: `star models` reads several
    import torch

    from star_cli.models.text import TextEncoder
    from star_cli.models.transformer import StarTransformer
    from star_cli.models.vqvae import MultiScaleVQVAE

FORMAT, FORMAT_VERSION = "star-cli", 1
CONFIG_FILE, CARD_FILE = "config.json", "README.md"
TRANSFORMER, VQVAE, TEXT_FOLDER = "transformer", "vqvae", "text_encoder"
"""How the names of the files begin that hold the tensors, and the folder of the text encoder."""
UNUSED_FILE = "unused.safetensors"
"""What published files hold and nothing here reads, kept for the way back (see `checkpoints/export.py`)."""
USUAL_RESOLUTION = 256


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A model folder whose config has been read and checked; no weight has been read yet.

    Raises:
        ModelFolderError: the parts do not fit together.
    """

    path: Path
    name: str
    transformer: TransformerConfig
    vqvae: VQVAEConfig
    text_encoder: TextEncoderConfig | None
    """None for a model that draws classes."""
    schedules: Mapping[int, ScaleSchedule]
    """Scale schedule of each resolution in pixels."""
    default_resolution: int
    sampling: SamplingOptions
    licence: str
    provenance: Mapping[str, Any]
    """How the model came to be: data, steps, time, versions. Free in form."""
    files: Mapping[str, FileRecord]
    """Hash and size of every file that is loaded, by its path inside the folder."""
    words: frozenset[str] | None = None
    """All words of the captions it learned from; None: not known, as of most models."""
    hash: str = ""
    """Identity of the model, SHA-256 in hex; set when a stored folder is read."""

    def __post_init__(self) -> None:
        codes = (self.transformer.codebook_size, self.transformer.code_dim)
        _require(
            codes == (self.vqvae.codebook_size, self.vqvae.code_dim),
            f"the transformer predicts {codes[0]} codes of width {codes[1]}, "
            f"the vqvae has {self.vqvae.codebook_size} of width {self.vqvae.code_dim}",
        )
        if self.transformer.conditioning == "text":
            _require(self.text_encoder is not None, "the transformer reads text, and text_encoder is null")
        if self.text_encoder is not None and self.transformer.conditioning == "text":
            _require(
                self.transformer.text_width == self.text_encoder.width,
                f"the transformer reads text features {self.transformer.text_width} wide, "
                f"the text encoder gives {self.text_encoder.width}",
            )
        _require(len(self.schedules) > 0, "resolutions is empty")
        for resolution, schedule in self.schedules.items():
            pixels = schedule.last_side * self.vqvae.factor
            _require(pixels == resolution, f"the schedule of resolution {resolution} ends at {pixels} pixels")
            last_level = schedule.first_level + len(schedule) - 1
            _require(
                schedule.first_level >= 0 and last_level < self.transformer.levels,
                f"resolution {resolution} uses level {last_level}, the transformer has {self.transformer.levels}",
            )
        _require(
            self.default_resolution in self.schedules, f"no resolution {self.default_resolution} to be the default"
        )

    @property
    def file_name(self) -> str:
        """The name without folders that it may hold, to call files by."""
        return Path(self.name).name

    @property
    def size_bytes(self) -> int:
        """Of all files that are loaded."""
        return sum(record.size_bytes for record in self.files.values())

    @property
    def class_count(self) -> int | None:
        """Classes that the model draws; None when it draws words."""
        return self.transformer.class_count

    def weights(self, stem: str) -> dict[Path, FileRecord]:
        """The safetensors files of the transformer or the VQVAE, one or several, in order."""
        return {self.path / name: self.files[name] for name in shard_names(stem, self.files)}

    def load_transformer(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> StarTransformer:
        """Check the file, then load it; `dtype` is float32 when None, the head always is.

        Raises:
            ModelFolderError: see `load_model`.
        """
        from star_cli.checkpoints.tensors import load_model
        from star_cli.models.transformer import StarTransformer

        with _said_of(TRANSFORMER):
            return load_model(lambda: StarTransformer(self.transformer), self.weights(TRANSFORMER), device, dtype)

    def load_vqvae(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> MultiScaleVQVAE:
        """Check the file, then load it; `dtype` is float32 when None, the quantiser always is.

        Raises:
            ModelFolderError: see `load_model`.
        """
        from star_cli.checkpoints.tensors import load_model
        from star_cli.models.vqvae import MultiScaleVQVAE

        with _said_of(VQVAE):
            return load_model(lambda: MultiScaleVQVAE(self.vqvae), self.weights(VQVAE), device, dtype)

    def load_text_encoder(self, device: torch.device | str = "cpu") -> TextEncoder:
        """Check its files, then load it in float32.

        Raises:
            ModelFolderError: the model has no text encoder, a file is missing or damaged, or one is there that the
                config does not list.
            TextEncoderError: the files are no text encoder such as the config describes.
        """
        from star_cli.models.text import load_text_encoder

        if self.text_encoder is None:
            raise ModelFolderError(
                f"model {self.name} draws classes and has no text encoder", "give a class instead of a prompt"
            )
        for name, record in self.files.items():
            if name.startswith(f"{TEXT_FOLDER}/"):
                record.check(self.path / name)
        for name in text_files(self.path):
            _require(name in self.files, f"{name} is in the folder, but not among the files of the config")
        return load_text_encoder(self.text_encoder, self.path, device)


def read_model_folder(path: Path | str) -> ModelFolder:
    """Read and check `config.json`, and that every file it lists is there and has its length.

    Raises:
        ModelFolderError: naming the file, what was found and what was expected.
    """
    folder = read_model_config(path)
    for name, record in folder.files.items():
        record.check_size(folder.path / name)
    return folder


def read_model_config(path: Path | str) -> ModelFolder:
    """Read and check `config.json` alone.

    Raises:
        ModelFolderError: naming what was found and what was expected.
    """
    path = Path(path)
    values = _upgrade(_read_config(path / CONFIG_FILE))
    with _said_of(CONFIG_FILE):
        return _from_config(path, values)


def is_model_folder(path: Path) -> bool:
    """Is there a `config.json` of ours? Other programs write files of that name, too."""
    try:
        _read_config(path / CONFIG_FILE)
    except ModelFolderError:
        return False
    return True


def folder_to_config(folder: ModelFolder) -> dict[str, Any]:
    """What `config.json` holds; `read_model_folder` is its inverse."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": folder.name,
        "transformer": folder.transformer.to_dict(),
        "vqvae": folder.vqvae.to_dict(),
        "text_encoder": folder.text_encoder.to_dict() if folder.text_encoder else None,
        "resolutions": {str(pixels): asdict(schedule) for pixels, schedule in sorted(folder.schedules.items())},
        "default_resolution": folder.default_resolution,
        "sampling": folder.sampling.to_dict(),
        "licence": folder.licence,
        "provenance": dict(folder.provenance),
        "files": {name: asdict(record) for name, record in folder.files.items()},
        **({} if folder.words is None else {"words": sorted(folder.words)}),
    }


def usual_resolution(resolutions: Mapping[int, ScaleSchedule]) -> int:
    """The resolution drawn when none is asked for: 256 pixels where the model knows it, else its smallest."""
    return USUAL_RESOLUTION if USUAL_RESOLUTION in resolutions else min(resolutions)


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelFolderError(f"{CONFIG_FILE}: missing in {file.parent}", "give the path of a star-cli model folder")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(f"{CONFIG_FILE}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{CONFIG_FILE}: not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ModelFolderError(f'{CONFIG_FILE}: not of format "{FORMAT}"', "give the path of a star-cli model folder")
    return values


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Bring older formats to today's; there is only one so far."""
    if (version := values.get("format_version")) != FORMAT_VERSION:
        raise ModelFolderError(
            f"{CONFIG_FILE}: format_version is {version}, this star-cli reads {FORMAT_VERSION}",
            "upgrade star-cli to the version that wrote the model",
        )
    return values


_FIELDS = (
    *("name", "transformer", "vqvae", "text_encoder", "resolutions", "default_resolution"),
    *("sampling", "licence", "provenance", "files"),
)
_OPTIONAL = ("words",)


def _from_config(path: Path, values: Mapping[str, Any]) -> ModelFolder:
    given = set(values) - {"format", "format_version"}
    if unknown := sorted(given - {*_FIELDS, *_OPTIONAL}):
        known = ", ".join((*_FIELDS, *_OPTIONAL))
        raise OptionError(f"no field is called {', '.join(unknown)}", f"known fields: {known}")
    if missing := [name for name in _FIELDS if name not in given]:
        raise OptionError(f"missing {', '.join(missing)}")
    return ModelFolder(
        path=path,
        name=str(values["name"]),
        transformer=TransformerConfig.from_dict(values["transformer"]),
        vqvae=VQVAEConfig.from_dict(values["vqvae"]),
        text_encoder=TextEncoderConfig.from_dict(text) if (text := values["text_encoder"]) is not None else None,
        schedules={int(pixels): _read_schedule(schedule) for pixels, schedule in values["resolutions"].items()},
        default_resolution=values["default_resolution"],
        sampling=SamplingOptions.from_dict(values["sampling"]),
        licence=str(values["licence"]),
        provenance=dict(values["provenance"]),
        files=_read_records(values["files"]),
        words=frozenset(map(str, words)) if (words := values.get("words")) is not None else None,
        hash=_identity(values),
    )


def _identity(values: Mapping[str, Any]) -> str:
    """SHA-256 over the files' hashes and all that the config says about drawing, sampling defaults left out.

    As it is stored: a field that a later version adds does not make another model of this one.
    """
    told = {name: values[name] for name in ("transformer", "vqvae", "text_encoder", "resolutions")}
    told["files"] = {name: record for name, record in values["files"].items() if name != UNUSED_FILE}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _read_schedule(values: Mapping[str, Any]) -> ScaleSchedule:
    return ScaleSchedule(tuple(values["sides"]), values["first_level"])


def _read_records(values: Mapping[str, Mapping[str, Any]]) -> dict[str, FileRecord]:
    for name in values:
        pure = PurePosixPath(name)
        _require(not pure.is_absolute() and ".." not in pure.parts, f"file {name} is not inside the model folder")
    for stem in (TRANSFORMER, VQVAE):
        shard_names(stem, values)
    return {name: FileRecord.from_dict(name, record) for name, record in values.items()}


def text_files(path: Path) -> list[str]:
    """Files of the text encoder, by their path inside the model folder; hidden ones (.DS_Store) are nobody's."""
    found = (file for file in (path / TEXT_FOLDER).rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted(file.relative_to(path).as_posix() for file in found)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ModelFolderError(f"{CONFIG_FILE}: {message}")


@contextmanager
def _said_of(file: str) -> Iterator[None]:
    """Whatever a config's values lead to is an error of the model folder, and names the file."""
    try:
        yield
    except ModelFolderError:
        raise
    except OptionError as error:
        raise ModelFolderError(f"{file}: {error}", error.hint) from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ModelFolderError(f"{file}: a value cannot be used: {error}") from error
