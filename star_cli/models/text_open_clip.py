"""Text towers of open_clip: the small one that this project trains, and published ones.

A folder holds two files, named and laid out as open_clip names and lays out a whole model, so that
`open_clip.get_tokenizer("local-dir:FOLDER")` and `open_clip.load_checkpoint(clip, FILE, strict=False)` read it:

    open_clip_config.json         {"model_cfg": {"embed_dim": ..., "vision_cfg": {...}, "text_cfg": {...}}}
    open_clip_model.safetensors   token_embedding.weight, positional_embedding, transformer.*, ln_final.*,
                                  text_projection

A folder that this project writes leaves the image tower's tensors out; one that has them is read too.

Letters: B prompts, T tokens, D width, E width that text and images share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from star_cli.errors import TextEncoderError
from star_cli.models.blank import blank
from star_cli.models.config import TextEncoderConfig
from star_cli.models.libraries import import_alone
from star_cli.models.text import TextEncoder, check_tower

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

_TEXT_PARTS = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
# the fields of text_cfg that a plain CLIP tower has; any other changes the maths, and is refused
_TEXT_FIELDS = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")


class OpenClipTextEncoder(TextEncoder):
    """An open_clip text tower; states after the final norm, pooled at the end-of-text token, without projection.

    Args:
        tower: an `open_clip.transformer.TextTransformer`.
        tokenizer: an `open_clip.SimpleTokenizer`.
    """

    def __init__(self, config: TextEncoderConfig, tower: Any, tokenizer: Any, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.tower = tower.requires_grad_(False).eval().to(self.device)
        self.tokenizer = tokenizer
        self._last_block = len(tower.transformer.resblocks) - 1 - config.drop_last_blocks

    def _encode_rows(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.tokenizer(texts, context_length=self.max_tokens).to(self.device)  # (B, T), zeros after the end
        features = self.tower.forward_intermediates(
            tokens,
            indices=[self._last_block],
            stop_early=True,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NLC",
        )
        states = features["text_intermediates"][0]  # (B, T, D), after ln_final
        end = tokens.argmax(dim=1)  # end of text has the largest id
        pooled = states[torch.arange(len(texts), device=self.device), end]  # (B, D)
        mask = torch.arange(self.max_tokens, device=self.device) <= end[:, None]
        return pooled, states, mask

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text)) + 2  # start and end of text


def load_open_clip_text(
    config: TextEncoderConfig, folder: Path | None, device: torch.device | str = "cpu"
) -> OpenClipTextEncoder:
    """Load a text tower from `folder`, or, when that is None, from the hub name "ARCHITECTURE:PRETRAINED".

    Raises:
        TextEncoderError: a file is missing or damaged, a field or tensor does not belong to a plain CLIP text tower,
            or the tower is another one than `config` says.
    """
    model_cfg, weights = _read_folder(folder) if folder is not None else _fetch(config.source)
    name = str(folder or config.source)
    text_cfg = dict(model_cfg["text_cfg"])
    check_tower(
        config,
        width=int(text_cfg.get("width", 512)),
        positions=int(text_cfg.get("context_length", 77)),
        blocks=int(text_cfg.get("layers", 12)),
    )
    with blank():
        tower = _build_tower(model_cfg, name)
    _assign(tower, _text_tensors(weights), name, config.max_tokens)
    return OpenClipTextEncoder(config, tower, load_tokenizer(config.max_tokens), device)


def load_tokenizer(max_tokens: int) -> Any:
    """open_clip's byte-pair tokenizer; its vocabulary comes with the package."""
    return _open_clip("tokenizer").SimpleTokenizer(context_length=max_tokens)


def save_open_clip_text(
    clip: nn.Module, model_cfg: Mapping[str, Any], folder: Path, dtype: torch.dtype = torch.float16
) -> None:
    """Write the text tower of a trained `open_clip.CLIP` as a folder that `load_open_clip_text` reads.

    Args:
        clip: the whole model; only its text side is written.
        model_cfg: what it was built from: `embed_dim`, `vision_cfg`, `text_cfg`.
        folder: created when missing; its two files are replaced.
        dtype: of the stored tensors. float16 keeps 11 bits, three more than bfloat16, and these weights are small.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu() for key, value in clip.state_dict().items() if key.startswith(_TEXT_PARTS)}
    if not all(value.to(dtype).isfinite().all() for value in tensors.values()):
        raise TextEncoderError(f"the trained text tower does not fit in {dtype}")
    save_file({key: value.to(dtype).contiguous() for key, value in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps({"model_cfg": dict(model_cfg)}, indent=2) + "\n", encoding="utf-8")


def _build_tower(model_cfg: Mapping[str, Any], name: str) -> nn.Module:
    text_cfg = {key: value for key, value in model_cfg["text_cfg"].items() if value is not None}
    if unknown := sorted(set(text_cfg) - set(_TEXT_FIELDS)):
        raise TextEncoderError(
            f"text encoder {name} is no plain CLIP tower: its text_cfg has {', '.join(unknown)}",
            f"known fields: {', '.join(_TEXT_FIELDS)}",
        )
    library = _open_clip("transformer")
    activation = library.QuickGELU if model_cfg.get("quick_gelu") else nn.GELU
    tower: nn.Module = library.TextTransformer(**text_cfg, output_dim=model_cfg["embed_dim"], act_layer=activation)
    return tower


def _open_clip(module: str) -> ModuleType:
    """A module of open_clip. The whole package imports timm, transformers and torchvision: seconds, and 200 MiB."""
    return import_alone(f"open_clip.{module}", "open_clip", "torchvision", "torchvision.ops")


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path]:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise TextEncoderError(
                f"text encoder folder {folder} has no {file}", f"it must hold {CONFIG_FILE} and {WEIGHTS_FILE}"
            )
    try:
        model_cfg = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
        model_cfg["embed_dim"], model_cfg["text_cfg"]["width"]
    except (ValueError, KeyError, TypeError) as error:
        raise TextEncoderError(f"{folder / CONFIG_FILE} does not describe an open_clip model: {error!r}") from error
    return model_cfg, folder / WEIGHTS_FILE


def _fetch(source: str) -> tuple[dict[str, Any], Path]:
    """Config from the package, weights from the hub's cache or the hub."""
    import open_clip

    architecture, _, pretrained = source.partition(":")
    model_cfg = open_clip.get_model_config(architecture) if pretrained else None
    tag = open_clip.get_pretrained_cfg(architecture, pretrained) if model_cfg else None
    if not model_cfg or not tag:
        raise TextEncoderError(
            f"open_clip has no model {source!r}",
            'name a folder, or "ARCHITECTURE:PRETRAINED" such as "ViT-H-14:laion2b_s32b_b79k"',
        )
    model_cfg["quick_gelu"] = tag.get("quick_gelu", model_cfg.get("quick_gelu", False))  # OpenAI's own towers
    try:
        return model_cfg, Path(open_clip.download_pretrained(tag))
    except Exception as error:  # the hub, the network and the disk each have their own family of errors
        raise TextEncoderError(
            f"text encoder {source} cannot be fetched: {str(error).splitlines()[0] if str(error) else error!r}",
            f"connect to the network once, or put {CONFIG_FILE} and {WEIGHTS_FILE} into a folder and name that folder",
        ) from error


def _text_tensors(weights: Path) -> dict[str, Tensor]:
    """The text tower's tensors of a safetensors file or an older checkpoint, without a leading "text."."""
    from safetensors import SafetensorError, safe_open

    def place(key: str) -> str | None:
        key = key.removeprefix("module.").removeprefix("text.")
        return key if key.startswith(_TEXT_PARTS) else None

    try:
        if weights.suffix == ".safetensors":
            with safe_open(weights, "pt") as file:
                return {own: file.get_tensor(key) for key in file.keys() if (own := place(key))}  # noqa: SIM118
        checkpoint = torch.load(weights, map_location="cpu", weights_only=True)
        tensors = checkpoint.get("state_dict", checkpoint)
        return {own: value for key, value in tensors.items() if (own := place(key))}
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise TextEncoderError(f"{weights} cannot be read: {error}", "copy or download the file again") from error


def _assign(tower: nn.Module, tensors: Mapping[str, Tensor], name: str, max_tokens: int) -> None:
    """Give a tower that was built on `meta` its tensors, strictly, in float32, and its context length."""
    expected = {key: tuple(value.shape) for key, value in tower.state_dict().items()}
    if missing := sorted(set(expected) - set(tensors)):
        raise TextEncoderError(f"text encoder {name} lacks {_some(missing)}", "copy or download the files again")
    if foreign := sorted(set(tensors) - set(expected)):
        raise TextEncoderError(f"text encoder {name} has tensors that do not belong: {_some(foreign)}")
    for key, shape in expected.items():
        if tuple(tensors[key].shape) != shape:
            raise TextEncoderError(f"text encoder {name}: {key} is {tuple(tensors[key].shape)}, expected {shape}")
    tower.load_state_dict({key: value.float() for key, value in tensors.items()}, assign=True, strict=True)
    # A causal tower reads a shorter context with the same weights. The mask is no parameter, so it is still on meta.
    tower.context_length = tower.num_pos = max_tokens  # type: ignore[assignment]
    tower.attn_mask = tower.build_causal_mask()  # type: ignore[operator]


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
