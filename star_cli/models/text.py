"""Text encoders: prompts in, one pooled feature, one state a token and a mask out.

The three kinds live in `text_clip.py`, `text_open_clip.py` and `text_t5.py`; this file has what they share.
transformers and open_clip are imported only when an encoder is built.

Letters: B prompts, T tokens, D width.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from star_cli.errors import TextEncoderError
from star_cli.models.condition import TextCondition
from star_cli.models.config import TextEncoderConfig
from star_cli.paths import expand_home

LONGEST_WORD = 1000
"""Characters of one unbroken word that are read; byte-pair encoding needs quadratic time beyond."""

# East Asian scripts write no spaces between words: each of their characters counts as a word of its own.
_EAST_ASIAN = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_EAST_ASIAN}]|[^\s{_EAST_ASIAN}]+")


class TextEncoder(ABC):
    """A frozen text tower with its tokenizer.

    Args:
        config: what the tower must give; checked by the loader, not here.
        device: where the tower is, and where its features come out.
    """

    tower: Any
    """The network itself, a `torch.nn.Module`."""

    def __init__(self, config: TextEncoderConfig, device: torch.device | str = "cpu"):
        self.config = config
        self.device = torch.device(device)

    @property
    def width(self) -> int:
        """D, width of pooled feature and states."""
        return self.config.width

    @property
    def max_tokens(self) -> int:
        """T, tokens of every encoding, padding and marks of start and end included."""
        return self.config.max_tokens

    def to(self, device: torch.device | str) -> Self:
        """Move the tower, and with it where features come out."""
        self.device = torch.device(device)
        self.tower.to(self.device)
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], rows: int = 1) -> TextCondition:
        """Features of the prompts, float32, always padded to `max_tokens`.

        Args:
            prompts: any text; half characters (lone surrogates) are replaced, too long a prompt is cut.
            rows: prompts in one pass of the tower. With 1 a prompt's features are the same to the last bit whatever
                stands beside it: matrix products round differently in a larger batch. Training passes more.
        """
        if isinstance(prompts, str):
            raise TypeError("encode takes a list of prompts, not one prompt")
        texts = [_readable(prompt) for prompt in prompts]
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            empty = torch.zeros(0, self.max_tokens, self.width, device=self.device)
            return TextCondition(empty[:, 0], empty, empty[..., 0].bool())
        parts = [self._encode_rows(distinct[start : start + rows]) for start in range(0, len(distinct), rows)]
        pooled, states, mask = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        place = {text: row for row, text in enumerate(distinct)}
        order = torch.tensor([place[text] for text in texts], device=pooled.device)
        return TextCondition(pooled.float()[order], states.float()[order], mask.bool()[order])

    def words_cut(self, prompt: str) -> str:
        """The end of the prompt that the tower does not read, from the first word that does not fit; "" when all do."""
        prompt = _whole_characters(prompt)
        words = [match.span() for match in _WORD.finditer(prompt)]
        readable = next((index for index, (start, end) in enumerate(words) if end - start > LONGEST_WORD), len(words))

        def fits(count: int) -> bool:
            return count == 0 or self._count_tokens(prompt[: words[count - 1][1]]) <= self.max_tokens

        # The end is looked for from the front, so that a book costs no more than a page.
        low, high = 0, min(self.max_tokens, readable)
        while high < readable and fits(high):
            low, high = high, min(2 * high, readable)
        if fits(high):
            low = high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return prompt[words[low][0] :].rstrip() if low < len(words) else ""

    @abstractmethod
    def _encode_rows(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled (B, D), states (B, T, D) and mask (B, T) of a few texts, in one pass."""

    @abstractmethod
    def _count_tokens(self, text: str) -> int:
        """Tokens of a text that is not cut, marks of start and end included."""


def load_text_encoder(
    config: TextEncoderConfig, folder: Path | None = None, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load the encoder that `config` names, in float32.

    Args:
        config: kind, source and the width and length that the tower must have.
        folder: the model folder that a relative `source` starts from.
        device: where the tower goes.
    Raises:
        TextEncoderError: the source is missing, damaged, cannot be downloaded, or is another tower than the config
            says.
    """
    if config.kind == "open_clip":
        from star_cli.models.text_open_clip import load_open_clip_text

        return load_open_clip_text(config, find_source(config, folder), device)
    if config.kind == "clip":
        from star_cli.models.text_clip import load_clip_text

        return load_clip_text(config, find_source(config, folder), device)
    if config.kind == "t5":
        from star_cli.models.text_t5 import load_t5

        return load_t5(config, find_source(config, folder), device)
    raise TextEncoderError(f"text encoder kind {config.kind!r} is unknown", "known kinds: clip, open_clip, t5")


def find_source(config: TextEncoderConfig, folder: Path | None) -> Path | None:
    """The local folder that `config.source` names; None when it can only be a hub name.

    Raises:
        TextEncoderError: the source is a path, and there is no such folder.
    """
    path = expand_home(config.source)
    local = path if path.is_absolute() or folder is None else Path(folder) / path
    if local.is_dir():
        return local
    # "text_encoder" and "./x" are folders only; hub names are "owner/name", "ARCHITECTURE:PRETRAINED" or one word
    if path.is_absolute() or config.source.startswith((".", "~")) or config.source == "text_encoder":
        raise TextEncoderError(
            f"text encoder folder {local} is missing",
            f"put the files of the {config.kind} text encoder there, or name a hub source in the config",
        )
    return None


def check_tower(config: TextEncoderConfig, *, width: int, positions: int | None, blocks: int) -> None:
    """Compare a tower's own dimensions with the config.

    Raises:
        TextEncoderError: naming what was found and what was expected.
    """
    if width != config.width:
        raise TextEncoderError(
            f"text encoder {config.source} is {width} wide, expected {config.width}",
            "use the text encoder that the model was trained with",
        )
    if positions is not None and config.max_tokens > positions:
        raise TextEncoderError(f"text encoder {config.source} reads {positions} tokens, not {config.max_tokens}")
    if not 0 <= config.drop_last_blocks < blocks:
        raise TextEncoderError(
            f"text encoder {config.source} has {blocks} blocks, of which drop_last_blocks leaves out "
            f"{config.drop_last_blocks}"
        )


def _whole_characters(prompt: str) -> str:
    """Join surrogate pairs and replace lone surrogates (bytes that were no UTF-8), which no tokenizer takes."""
    return prompt.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _readable(prompt: str) -> str:
    """The prompt up to `LONGEST_WORD` characters of its first word that is longer."""
    prompt = _whole_characters(prompt)
    for match in _WORD.finditer(prompt):
        if match.end() - match.start() > LONGEST_WORD:
            return prompt[: match.start() + LONGEST_WORD]
    return prompt
