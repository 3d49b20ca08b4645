"""T5 through transformers, as the T5 variants of STAR read it (flan-t5-xl, 120 tokens).

Letters: B prompts, T tokens, D width.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import torch
from torch import Tensor

from star_cli.models.config import TextEncoderConfig
from star_cli.models.text import TextEncoder, check_tower
from star_cli.models.text_clip import from_pretrained, pretrained_sources


class T5TextEncoder(TextEncoder):
    """A transformers T5 encoder; pooled as the config says: mean over all positions, padding included, or last token.

    Args:
        tower: a `transformers.T5EncoderModel`.
        tokenizer: its tokenizer.
    """

    def __init__(self, config: TextEncoderConfig, tower: Any, tokenizer: Any, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.tower = tower.requires_grad_(False).eval().to(self.device)
        self.tokenizer = tokenizer

    def _encode_rows(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        inputs = self.tokenizer(
            [self._clean(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        mask = inputs["attention_mask"]  # (B, T)
        states = self.tower(inputs["input_ids"], attention_mask=mask).last_hidden_state  # (B, T, D)
        if self.config.pooling == "mean_with_padding":
            pooled = states.mean(dim=1)  # the published models were trained so, padding included
        else:
            pooled = states[torch.arange(len(texts), device=self.device), mask.sum(dim=1) - 1]
        return pooled, states, mask.bool()

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer(self._clean(text), verbose=False)["input_ids"])

    def _clean(self, text: str) -> str:
        # twice, as the captions of the published models were: the first pass can uncover what the second removes
        return clean_caption(clean_caption(text)) if self.config.clean_captions else text


def load_t5(config: TextEncoderConfig, folder: Path | None, device: torch.device | str = "cpu") -> T5TextEncoder:
    """Load from `folder`, flat or with `text_encoder/` and `tokenizer/`, or by the hub name.

    Raises:
        TextEncoderError: a file is missing or damaged, or the tower is another one than `config` says.
    """
    from transformers import AutoTokenizer, T5EncoderModel

    tower_source, tokenizer_source = pretrained_sources(config, folder)
    tokenizer = from_pretrained(AutoTokenizer, tokenizer_source, config)
    tower = from_pretrained(T5EncoderModel, tower_source, config, dtype=torch.float32)
    # T5 has relative positions: any length
    check_tower(config, width=tower.config.d_model, positions=None, blocks=1)
    return T5TextEncoder(config, tower, tokenizer, device)


_WEB = re.compile(r"\b(?:https?://|www\.)\S+|\b[\w.-]+@[\w-]+\.[\w.]+\b")
_TAG = re.compile(r"<[^<>]*>")
_FILE = re.compile(r"\S+\.(?:png|jpe?g|gif|webp|bmp|svg|tiff?|html?|php|pdf|mp4|avi|psd)\b")
_HANDLE = re.compile(r"(?<!\w)[@#]\w+")
_LONG_NUMBER = re.compile(r"#?\b\d{6,}\b|\b\d+x\d+\b")
_QUOTES = str.maketrans(
    dict.fromkeys("`\u00b4\u2018\u2019", "'") | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
)
_DASH = re.compile("[\u2010-\u2015\u2212]+")
_ODD = re.compile(r"[^\w\s.,;:!?'\"()&%$+/-]|_")
_REPEATED = re.compile(r"([^\w\s])\1+")


def clean_caption(text: str) -> str:
    """Turn a caption from the web into plain lower-case words.

    Removes addresses, mail addresses, tags and entities of HTML, handles, file names, sizes and long numbers; makes
    quotes and dashes plain; drops other signs, East Asian text kept; collapses runs. This is the published cleaning in
    spirit, not sign by sign: a prompt of ordinary words comes out the same.
    """
    text = html.unescape(html.unescape(unquote_plus(text) if "%20" in text else text)).lower()
    text = text.replace("<person>", "person")
    for unwanted in (_WEB, _TAG, _FILE, _HANDLE, _LONG_NUMBER):
        text = unwanted.sub(" ", text)
    text = _DASH.sub("-", text.translate(_QUOTES))
    text = _REPEATED.sub(r"\1", _ODD.sub(" ", text))
    return " ".join(text.split()).strip(" .,;:-\"'")
