"""CLIP text towers through transformers, such as the one of Stable Diffusion 2.1 that the published STAR models read.

Letters: B prompts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from star_cli.errors import TextEncoderError
from star_cli.models.config import TextEncoderConfig
from star_cli.models.text import TextEncoder, check_tower

_LEGACY_END = 2
"""eos_token_id of CLIP configs that is no token of theirs: the end of text is then the largest token id."""


class ClipTextEncoder(TextEncoder):
    """A transformers CLIP text tower; states after the final norm, pooled at the end-of-text token, without projection.

    Args:
        tower: a `transformers.CLIPTextModel`.
        tokenizer: its tokenizer; it pads with whatever token it was published with, and the mask leaves that out.
    """

    def __init__(self, config: TextEncoderConfig, tower: Any, tokenizer: Any, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.tower = tower.requires_grad_(False).eval().to(self.device)
        self.tokenizer = tokenizer

    def _encode_rows(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        tokens, mask = inputs["input_ids"], inputs["attention_mask"]  # (B, T) each
        if self.config.drop_last_blocks:
            output = self.tower(tokens, attention_mask=mask, output_hidden_states=True)
            hidden = output.hidden_states[-1 - self.config.drop_last_blocks]
            states = self.tower.final_layer_norm(hidden)  # (B, T, D)
        else:
            states = self.tower(tokens, attention_mask=mask).last_hidden_state  # (B, T, D), after the final norm
        end_id = self.tower.config.eos_token_id
        end = (tokens if end_id == _LEGACY_END else (tokens == end_id).int()).argmax(dim=1)
        pooled = states[torch.arange(len(texts), device=self.device), end]  # (B, D)
        return pooled, states, mask.bool()

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])


def load_clip_text(
    config: TextEncoderConfig, folder: Path | None, device: torch.device | str = "cpu"
) -> ClipTextEncoder:
    """Load from `folder`, flat or with `text_encoder/` and `tokenizer/` as in Stable Diffusion, or by the hub name.

    Raises:
        TextEncoderError: a file is missing or damaged, or the tower is another one than `config` says.
    """
    from transformers import AutoTokenizer, CLIPTextModel

    tower_source, tokenizer_source = pretrained_sources(config, folder)
    tokenizer = from_pretrained(AutoTokenizer, tokenizer_source, config)
    tower = from_pretrained(CLIPTextModel, tower_source, config, dtype=torch.float32)
    check_tower(
        config,
        width=tower.config.hidden_size,
        positions=tower.config.max_position_embeddings,
        blocks=tower.config.num_hidden_layers,
    )
    return ClipTextEncoder(config, tower, tokenizer, device)


def pretrained_sources(config: TextEncoderConfig, folder: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `from_pretrained` for tower and tokenizer, from a local folder or a hub name."""
    if folder is None:
        return {"pretrained_model_name_or_path": config.source}, {"pretrained_model_name_or_path": config.source}
    tower = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    tokenizer = next((place for place in (folder / "tokenizer", tower / "tokenizer") if place.is_dir()), tower)
    if not (tower / "config.json").is_file():
        raise TextEncoderError(
            f"text encoder folder {tower} has no config.json",
            "it must hold config.json, model.safetensors and tokenizer files, flat or in text_encoder/ and tokenizer/",
        )
    local = {"local_files_only": True}
    return {"pretrained_model_name_or_path": str(tower), **local}, {
        "pretrained_model_name_or_path": str(tokenizer),
        **local,
    }


def from_pretrained(kind: Any, source: dict[str, Any], config: TextEncoderConfig, **options: Any) -> Any:
    """Load one part through transformers; whatever goes wrong becomes one sentence.

    Raises:
        TextEncoderError: the part is missing, damaged, of another shape, or cannot be downloaded.
    """
    name = source["pretrained_model_name_or_path"]
    try:
        with _quiet(is_local="local_files_only" in source):
            if "dtype" not in options:
                return kind.from_pretrained(**source)
            tower, report = kind.from_pretrained(**source, **options, output_loading_info=True)
    except Exception as error:  # transformers, the hub and the network each have their own family of errors
        reason = next(iter(str(error).splitlines()), "") or repr(error)
        raise TextEncoderError(
            f"text encoder {name} cannot be loaded: {reason}",
            f"connect to the network once, or put the {config.kind} tower's config.json, model.safetensors and "
            "tokenizer files into a folder and name that folder as the source",
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise TextEncoderError(
            f"text encoder {name} lacks {', '.join(missing[:5])}", "copy or download the files again"
        )
    return tower


@contextmanager
def _quiet(is_local: bool) -> Iterator[None]:
    """Keep transformers' remarks, and for local files its progress bars, off the terminal while it loads."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if is_local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
