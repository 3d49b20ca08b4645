"""Parameters of a transformer, and the floating-point operations of a training step, counted from its config alone.

Letters: B images, L tokens that take part, T text tokens, C width, D text width, V codes, Z code width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from star_cli.models.config import TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer


def count_parameters(config: TransformerConfig) -> int:
    """Learnt numbers of a transformer of this config; no memory is taken for them."""
    with torch.device("meta"):
        model = StarTransformer(config)
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations that one training step asks for: two for each multiplication and addition of a matrix
    product. What checkpointing computes once more, and what is no matrix product, does not count.
    """

    forward: int
    backward: int
    tokens: int
    """Tokens that take part, of all images together."""

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward

    @property
    def per_token(self) -> float:
        """Forward and backward, for each token that takes part."""
        return self.total / self.tokens


class Product(NamedTuple):
    """A matrix product (rows, from) x (from, to)."""

    rows: int
    from_width: int
    to_width: int
    backward: int = 2
    """Products of the same size that its backward needs: a gradient of each factor; 1 when one factor needs none."""

    has_weights: bool = True
    """The second factor is learnt; False where both come out of the prompt or the picture, as in attention."""

    @property
    def flops(self) -> int:
        """Two for each multiplication and addition."""
        return 2 * self.rows * self.from_width * self.to_width


def training_flops(
    config: TransformerConfig,
    schedule: ScaleSchedule,
    batch: int,
    text_tokens: int,
    kept: int | None = None,
    is_dense: bool = False,
) -> StepFlops:
    """Count a step of stage 2: the transformer with its head, without a stable head, tokenizer and text encoder.

    Args:
        config: of the transformer.
        schedule: scales that are trained on.
        batch: B.
        text_tokens: T, padding included.
        kept: tokens that take part when some of the last scale's are left out; None, or as many as there are: all.
        is_dense: count attention among all pairs of tokens, as a dense mask has it computed, not only among those that
            may look at each other. The share of a machine's peak that is put to use (MFU) asks for the latter.
    """
    sizes = list(schedule.sizes)
    sizes[-1] -= max(schedule.length - kept, 0) if kept else 0
    tokens = sum(sizes)
    pairs = tokens**2 if is_dense else sum(size * sum(sizes[: scale + 1]) for scale, size in enumerate(sizes))
    products = [*_outside_blocks(config, schedule, batch, tokens)]
    for _ in range(config.depth):
        products += _block(config, batch, tokens, pairs, text_tokens)
    forward = sum(product.flops for product in products)
    backward = sum(product.flops * product.backward for product in products)
    return StepFlops(forward, backward, batch * tokens)


def _outside_blocks(config: TransformerConfig, schedule: ScaleSchedule, batch: int, tokens: int) -> Iterator[Product]:
    width = config.width
    # what was given, not computed, needs no gradient
    if config.conditioning == "text":
        ways_in = config.text_start + config.is_text_modulated
        yield Product(ways_in * batch, config.text_width, width, backward=1)
    yield Product(batch * (schedule.length - schedule.sizes[0]), config.code_dim, width, backward=1)
    if config.modulation == "level":
        yield Product(tokens, 2 * width, width)
        yield Product(tokens, width, 6 * width)
    if config.modulation in ("class_shared", "text_shared"):
        yield Product(batch, width, 6 * width)
    if config.is_head_modulated:
        yield Product(batch, width, 2 * width)
    yield Product(batch * tokens, width, config.codebook_size)


def _block(config: TransformerConfig, batch: int, tokens: int, pairs: int, text_tokens: int) -> Iterator[Product]:
    if config.has_own_modulation:
        yield Product(batch, config.width, 6 * config.width)
    yield from self_attention_products(config, batch * tokens, batch * pairs)
    if config.cross_attention:
        heard = 1 if config.cross_attention_rows == "first_image" else batch
        yield text_product(config, heard * text_tokens)
        yield from cross_attention_products(config, heard * tokens, heard * tokens * text_tokens)
    yield from feed_forward_products(config, batch * tokens)


def self_attention_products(config: TransformerConfig, rows: int, pairs: int) -> Iterator[Product]:
    """Of one block: `rows` tokens of all images, `pairs` of a token and one that it looks at."""
    yield Product(rows, config.width, 3 * config.width)  # queries, keys, values
    yield from _attention(config, pairs)
    yield Product(rows, config.width, config.width)


def cross_attention_products(config: TransformerConfig, rows: int, pairs: int) -> Iterator[Product]:
    """Of one block, its text's keys and values left out; arguments as in `self_attention_products`."""
    yield Product(rows, config.width, config.width)
    yield from _attention(config, pairs)
    yield Product(rows, config.width, config.width)


def text_product(config: TransformerConfig, rows: int) -> Product:
    """Keys and values of `rows` text tokens, of one block."""
    return Product(rows, config.text_width, 2 * config.width, backward=1)


def feed_forward_products(config: TransformerConfig, rows: int) -> Iterator[Product]:
    """Of one block, for `rows` tokens of all images."""
    hidden = round(config.width * config.mlp_ratio)
    yield Product(rows, config.width, hidden)
    yield Product(rows, hidden, config.width)


def _attention(config: TransformerConfig, pairs: int) -> list[Product]:
    """Scores, and their mixture of values; all heads together."""
    return 2 * [Product(pairs, config.width, 1, has_weights=False)]
