"""Captions and their features as the tensors of one shard of a token cache.

Letters: n pictures, c captions, D width of the text features, T text tokens, t those of all captions, unpadded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from star_cli.errors import DataError
from star_cli.models.float32 import exact_float32
from star_cli.models.text import TextEncoder

AT_ONCE = 64
"""Captions in one pass of the text encoder."""


def caption_tensors(
    captions: Sequence[Sequence[str]], text_encoder: TextEncoder | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Captions of n pictures, several each.

    Args:
        captions: of each picture; may be none.
        text_encoder: makes their features, if they are wanted.
        dtype: how features are stored.
    Returns:
        `text`: UTF-8 of all captions, one after another, uint8; `text_edges`: where each begins and the last ends,
        (c + 1,); `first`: the first caption of each picture, and c, (n + 1,); and with features `pooled` (c, D), `mask`
        (c, T), `states` (t, D): those of the captions' own tokens, which are all that is ever looked at, and
        `states_edges` (c + 1,).
    Raises:
        DataError: a feature is not finite in `dtype`.
    """
    texts = list(chain.from_iterable(captions))
    words = [text.encode("utf-8", "surrogatepass") for text in texts]
    joined = b"".join(words)
    tensors = {
        "text": torch.frombuffer(bytearray(joined), dtype=torch.uint8) if joined else torch.zeros(0, dtype=torch.uint8),
        "text_edges": _edges(map(len, words)),
        "first": _edges(map(len, captions)),
    }
    return tensors if text_encoder is None else {**tensors, **_features(texts, text_encoder, dtype)}


def _features(texts: Sequence[str], text_encoder: TextEncoder, dtype: torch.dtype) -> dict[str, Tensor]:
    width, tokens = text_encoder.width, text_encoder.max_tokens
    pooled, states = [torch.zeros(0, width, dtype=dtype)], [torch.zeros(0, width, dtype=dtype)]
    masks = [torch.zeros(0, tokens, dtype=torch.bool)]
    with exact_float32(text_encoder.device):
        for start in range(0, len(texts), AT_ONCE):
            some = text_encoder.encode(texts[start : start + AT_ONCE], rows=AT_ONCE).to("cpu")
            pooled.append(some.pooled.to(dtype))
            states.append(some.states[some.mask].to(dtype))  # caption by caption, padding left out
            masks.append(some.mask)
    found = {"pooled": torch.cat(pooled), "states": torch.cat(states), "mask": torch.cat(masks)}
    if not all(found[name].isfinite().all() for name in ("pooled", "states")):
        raise DataError(f"text features do not fit in {dtype}", "store them as float32")
    return {**found, "states_edges": _edges(found["mask"].sum(1).tolist())}


def _edges(lengths: Iterable[int]) -> Tensor:
    """Where each of several pieces begins when they stand one after another, and where the last ends; int64."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)
