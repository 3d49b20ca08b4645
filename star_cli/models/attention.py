"""Self- and cross-attention of the scale-wise transformer.

Letters: B rows, l tokens of a scale (or of the whole schedule), C width, N heads, K head width, T text tokens,
D text width.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.models.config import TransformerConfig
from star_cli.models.flex import FlexMask
from star_cli.models.linear import linear
from star_cli.models.rope import rotate

LARGEST_PLAIN = 2**26  # scores that one attention may keep for its backward: 128 MiB in bfloat16
LARGEST_LOG_GAIN = math.log(100)  # the released weights were trained with the gain clamped here
SHORTEST = 1e-12  # length below which a vector is not lengthened further, as `F.normalize` has it


AttentionMask = Tensor | FlexMask | None
"""Where a token may look: True in a tensor, the same in flex attention's form (on a GPU), or None: everywhere."""


class KeysValues(NamedTuple):
    """Keys and values ready for attention, (B, N, l, K) each."""

    keys: Tensor
    values: Tensor


def attend(queries: Tensor, held: KeysValues, mask: AttentionMask, scale: float) -> Tensor:
    """Softmax attention.

    Args:
        queries: (B, N, l, K).
        held: keys and values, (B, N, k, K) each.
        mask: where a query may look; a tensor is broadcastable to (B, N, l, k).
        scale: factor of the products of queries and keys.
    Returns:
        (B, N, l, K).
    """
    if isinstance(mask, FlexMask):
        return mask.attend(queries, *held, scale)
    # The backward of the fused kernel is slow on a CPU. Forward and backward in bfloat16, 2 cores: 85 tokens (batch
    # 32, 4 heads) 10 ms against 30, 341 (batch 16) 33 against 60, 1,365 (batch 4) 86 against 160.
    trains_on_cpu = queries.requires_grad and queries.device.type == "cpu" and queries.dtype == torch.bfloat16
    if trains_on_cpu and queries.shape[:-1].numel() * held.keys.shape[-2] <= LARGEST_PLAIN:
        return _attend_plainly(queries, held, mask, scale)
    return F.scaled_dot_product_attention(queries, *held, attn_mask=mask, scale=scale)


def _attend_plainly(queries: Tensor, held: KeysValues, mask: Tensor | None, scale: float) -> Tensor:
    """`attend` in three operations that keep every score."""
    scores = (queries * scale) @ held.keys.transpose(-1, -2)
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ held.values


class KeyValueStore(Protocol):
    """What self-attention needs of a cache: it hands in one scale and gets all scales so far."""

    def append(self, new: KeysValues) -> KeysValues:
        """Keep this scale; return everything kept, this scale last, keys in the dtype of the values."""
        ...


class _HeadGain(nn.Module):
    """Queries and keys of unit length, queries times a learned gain per head; as they are when `l2_norm` is off."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.log_gain = nn.Parameter(torch.full((config.heads,), math.log(4.0))) if config.l2_norm else None

    def queries(self, queries: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Queries (B, N, l, K), turned by a rotary table, see `rotate`, or not."""
        if self.log_gain is None:
            return _turned(queries, rotation)
        gain = self.log_gain.float().clamp(max=LARGEST_LOG_GAIN).exp()
        return _unit(queries, rotation, gain[:, None, None])

    def keys(self, keys: Tensor, rotation: Tensor | None = None) -> Tensor:
        """Keys (B, N, l, K), turned like the queries."""
        return _turned(keys, rotation) if self.log_gain is None else _unit(keys, rotation)


def _turned(vectors: Tensor, rotation: Tensor | None) -> Tensor:
    return vectors if rotation is None else rotate(vectors, rotation)


def _unit(vectors: Tensor, rotation: Tensor | None, gain: Tensor | None = None) -> Tensor:
    """Vectors turned, of length 1 or of that of the gain; float32.

    A turn keeps lengths, so they are measured before it: the passes over memory, one in place of three after the turn,
    are what this costs on a CPU (1,024 tokens, 2 rows of width 1,024, 2 threads: 5.0 ms for queries and keys, was 8.6).
    """
    vectors = vectors.float()
    lengths = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(SHORTEST)
    return _turned(vectors, rotation) / (lengths if gain is None else lengths / gain)


class SelfAttention(nn.Module):
    """Attention among the tokens of this scale and the earlier ones (STAR, figure of the block; VAR, section 3.1)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        # keys carry no bias: the released weights were trained with it fixed at zero
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.gain = _HeadGain(config)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, rotation: Tensor | None, mask: AttentionMask, store: KeyValueStore | None) -> Tensor:
        """Mix tokens.

        Args:
            x: normed residual stream, (B, l, C).
            rotation: rotary table of these tokens, (l, P, 2), one for each row (B, 1, l, P, 2), or None.
            mask: where a token may look, (l, l); None: at all that is there.
            store: cache of earlier scales, or None in training.
        Returns:
            What to add to the residual stream, (B, l, C).
        """
        x = x.to(self.qkv.weight.dtype)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.config.heads, -1))  # (B, l, 3, N, K)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)  # (B, N, l, K) each
        queries = self.gain.queries(queries, rotation).to(values.dtype)
        held = KeysValues(self.gain.keys(keys, rotation), values)
        held = KeysValues(held.keys.to(values.dtype), values) if store is None else store.append(held)
        mixed = attend(queries, held, mask, self.config.softmax_scale)
        return linear(mixed.transpose(1, 2).flatten(2), self.out.weight, self.out.bias)


class CrossAttention(nn.Module):
    """Attention from image tokens to the text states (STAR, figure of the block)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.width))
        self.kv = nn.Linear(config.text_width, 2 * config.width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(config.width))
        self.gain = _HeadGain(config)
        self.out = nn.Linear(config.width, config.width)

    def text_keys_values(self, states: Tensor) -> KeysValues:
        """Keys and values of text states (B, T, D); computed once per prompt."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        kv = linear(states.to(self.kv.weight.dtype), self.kv.weight, bias).unflatten(-1, (2, self.config.heads, -1))
        keys, values = kv.permute(2, 0, 3, 1, 4)  # (B, N, T, K) each
        return KeysValues(self.gain.keys(keys).to(values.dtype), values)

    def forward(self, x: Tensor, text: KeysValues, mask: Tensor) -> Tensor:
        """Look at the text.

        Args:
            x: normed residual stream, (B, l, C).
            text: from `text_keys_values`.
            mask: True for tokens of the prompt, (B, 1, 1, T).
        Returns:
            What to add to the residual stream, (B, l, C).
        """
        queries = linear(x.to(self.q.weight.dtype), self.q.weight, self.q_bias)
        queries = queries.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)  # (B, N, l, K)
        queries = self.gain.queries(queries).to(text.values.dtype)
        mixed = attend(queries, text, mask, self.config.softmax_scale)
        return linear(mixed.transpose(1, 2).flatten(2), self.out.weight, self.out.bias)
