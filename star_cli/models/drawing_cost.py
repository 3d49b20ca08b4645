"""What drawing asks of a machine, part by part and scale by scale, counted from the configs alone: floating-point
operations, and bytes that have to move however well the work is done.

Letters: B images, R rows (twice as many under guidance), T text tokens, C width, h w cells of a level of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.flops import (
    Product,
    cross_attention_products,
    feed_forward_products,
    self_attention_products,
    text_product,
)
from star_cli.models.schedule import ScaleSchedule

Unit = Literal["linears", "blocks", "head", "convolutions", "decoder"]
"""What operations run on: products in the dtype of the blocks' linear layers, which quantising changes (`int8.py`);
products in the dtype of all else in the blocks; products in float32; convolutions of the decoder's blocks and
doublings, which quantising changes, too (`int8_convolution.py`); all else in the dtype of the decoder."""
Place = tuple[str, int | None]
"""A part, and its scale; None for what is done once a picture."""
FLOAT32 = 4


@dataclass(frozen=True)
class Cost:
    """Of one part, at one scale or once a picture."""

    work: Mapping[Unit, int]
    """Operations, by what they run on: two for each multiplication and addition of a matrix product or a convolution;
    nothing else counts. Empty where only memory is moved."""
    bytes: int
    """Weights, kept keys and values, and what goes in and out of the part, each read or written once."""

    @property
    def flops(self) -> int:
        """Operations of every unit."""
        return sum(self.work.values())

    def __add__(self, other: Cost) -> Cost:
        units = [*dict.fromkeys([*self.work, *other.work])]
        return Cost(
            {unit: self.work.get(unit, 0) + other.work.get(unit, 0) for unit in units}, self.bytes + other.bytes
        )


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One pass that draws some images."""

    transformer: TransformerConfig
    vqvae: VQVAEConfig
    schedule: ScaleSchedule
    images: int
    """B."""
    text_tokens: int = 0
    """T, padding included; 0 for a model that draws classes."""
    is_guided: bool = True
    item_size: int = FLOAT32
    """Bytes of a number in the blocks and in the decoder; 2 in half precision. What decides tokens has 4."""
    weight_size: float | None = None
    """Bytes of a weight of those layers of the blocks that can be rounded; as `item_size` when None."""
    decoder_weight_size: float | None = None
    """The same of the decoder's convolutions."""
    is_summed_again: bool = True
    """f_hat is added up once more before decoding, from the tokens of each image alone."""

    @property
    def rows(self) -> int:
        """R."""
        return self.images * (2 if self.is_guided else 1)

    @property
    def heard(self) -> int:
        """Rows that look at their text (`TransformerConfig.cross_attention_rows`)."""
        return {"per_image": self.rows, "conditional": self.images, "first_image": 1}[
            self.transformer.cross_attention_rows
        ]

    def cost(self, products: Iterable[Product], moved: int, times: int = 1, unit: Unit = "blocks") -> Cost:
        """Of some products and all of their weights.

        Args:
            products: of one of `times` alike parts.
            moved: bytes of activations in and out of each of them.
            times: how many there are.
            unit: what they run on.
        """
        products = list(products)
        sizes: dict[Unit, float] = {
            "head": FLOAT32,
            "linears": self.weight_size or self.item_size,
            "convolutions": self.decoder_weight_size or self.item_size,
        }
        weights = sum(product.from_width * product.to_width for product in products if product.has_weights)
        flops = sum(product.flops for product in products)
        return Cost({unit: times * flops}, times * (round(weights * sizes.get(unit, self.item_size)) + moved))

    def layers_cost(self, products: Iterable[Product], moved: int) -> Cost:
        """Of a layer of every block whose weights can be quantised, and of the attention in it, which never is.

        Args:
            products: of one block.
            moved: bytes of activations in and out of each block's layer.
        """
        products = list(products)
        learnt = [product for product in products if product.has_weights]
        attention = [product for product in products if not product.has_weights]
        depth = self.transformer.depth
        cost = self.cost(learnt, moved, depth, "linears")
        return cost + self.cost(attention, 0, depth) if attention else cost


def drawing_costs(drawing: Drawing) -> Mapping[Place, Cost]:
    """Every counted part of a pass, the text encoder and the stable head left out: those depend on more than configs.

    Parts carry the names that `evaluation.speed_profile` times them under.
    """
    costs: dict[Place, Cost] = {("start", None): _start(drawing)}
    for scale in range(len(drawing.schedule)):
        costs |= {(part, scale): cost for part, cost in _scale(drawing, scale)}
    if drawing.is_summed_again:
        costs["quantizer", None] = sum_costs(costs["quantizer", scale] for scale in range(len(drawing.schedule)))
    costs["decode", None] = _decode(drawing)
    pixels = drawing.images * 3 * (drawing.schedule.last_side * drawing.vqvae.factor) ** 2
    costs["file", None] = Cost({}, pixels)
    return costs


def sum_costs(costs: Iterable[Cost]) -> Cost:
    """Of several parts, at least one."""
    first, *others = costs
    return sum(others, first)


def _start(drawing: Drawing) -> Cost:
    """From pooled text and states to start map, modulation vector and each block's text keys and values."""
    config = drawing.transformer
    if config.conditioning == "class":
        return Cost({}, drawing.rows * config.width * FLOAT32)
    ways_in = config.text_start + config.is_text_modulated
    pooled = drawing.cost(
        [Product(drawing.rows, config.text_width, config.width)] * ways_in,
        drawing.rows * (config.text_width + config.width) * FLOAT32,
    )
    if not config.cross_attention:
        return pooled
    read = drawing.heard * drawing.text_tokens
    moved = read * (config.text_width + 2 * config.width) * drawing.item_size
    return pooled + drawing.cost([text_product(config, read)], moved, config.depth)


def _scale(drawing: Drawing, scale: int) -> Iterator[tuple[str, Cost]]:
    config, schedule = drawing.transformer, drawing.schedule
    width, size = config.width, drawing.item_size
    here, held = schedule.sizes[scale], schedule.offsets[scale + 1]
    tokens = drawing.rows * here
    through = 2 * tokens * width * size  # normed in, what is added to the residual stream out

    entering = [Product(tokens, config.code_dim, width)] if scale else []
    yield "input", drawing.cost(entering, tokens * width * FLOAT32 + drawing.images * here * config.code_dim * FLOAT32)

    kept = 2 * width * size * drawing.rows * (held + here)  # keys and values of all scales read, of this one written
    attention = self_attention_products(config, tokens, tokens * held)
    yield "self_attention", drawing.layers_cost(attention, through + kept)
    if config.cross_attention:
        looking = drawing.heard * here
        text = 2 * width * size * drawing.heard * drawing.text_tokens
        looks = cross_attention_products(config, looking, looking * drawing.text_tokens)
        yield "cross_attention", drawing.layers_cost(looks, 2 * looking * width * size + text)
    yield "feed_forward", drawing.layers_cost(feed_forward_products(config, tokens), through)
    yield "block_rest", _block_rest(drawing, here)

    logits = tokens * config.codebook_size * FLOAT32
    head = [Product(tokens, width, config.codebook_size)]
    if config.is_head_modulated:
        head.append(Product(drawing.rows, width, 2 * width))
    yield "head", drawing.cost(head, tokens * width * FLOAT32 + logits, unit="head")
    yield "sampling", Cost({}, logits)
    yield "quantizer", _add_scale(drawing)


def _block_rest(drawing: Drawing, tokens: int) -> Cost:
    """Modulation, norms and additions: the residual stream is read and written once for each branch."""
    config = drawing.transformer
    width, branches = config.width, 3 if config.cross_attention else 2
    stream = branches * 2 * drawing.rows * tokens * width * FLOAT32
    own = [Product(drawing.rows, width, 6 * width)] if config.has_own_modulation else []
    shared = []
    if config.modulation == "level":
        shared = [Product(tokens, 2 * width, width), Product(tokens, width, 6 * width)]
    elif config.modulation in ("class_shared", "text_shared"):
        shared = [Product(drawing.rows, width, 6 * width)]
    return drawing.cost(own, stream, config.depth) + drawing.cost(shared, 0)


def _add_scale(drawing: Drawing) -> Cost:
    """Convolve with phi over the whole latent, read and write f_hat; the same at every scale."""
    width, cells = drawing.vqvae.code_dim, drawing.schedule.last_side**2
    product = Product(drawing.images * cells, 9 * width, width)
    return drawing.cost([product], 3 * drawing.images * cells * width * FLOAT32, unit="head")


def _decode(drawing: Drawing) -> Cost:
    """f_hat to pixels: the convolutions as they are written, without those that a cleverer order could save."""
    products = list(_decoder_products(drawing.vqvae, drawing.images, drawing.schedule.last_side))
    layers = sum_costs(
        drawing.cost([product], _leaving(product) * drawing.item_size, unit=unit) for unit, product in products
    )
    latent = drawing.images * drawing.vqvae.code_dim * drawing.schedule.last_side**2 * FLOAT32
    pixels = drawing.images * 3 * (drawing.schedule.last_side * drawing.vqvae.factor) ** 2 * FLOAT32
    return layers + Cost({}, latent + pixels)


def _leaving(product: Product) -> int:
    """Numbers that leave a layer; what leaves the attention's products stays in the cache."""
    return product.rows * product.to_width if product.has_weights else 0


def _decoder_products(config: VQVAEConfig, images: int, side: int) -> Iterator[tuple[Unit, Product]]:
    """A 3x3 convolution is a product (B h w, 9 C) x (9 C, C')."""
    widths = [config.channels * multiplier for multiplier in config.multipliers]
    last = len(widths) - 1
    cells = images * side**2
    yield "decoder", Product(cells, 9 * config.code_dim, config.code_dim)  # after the quantiser
    yield "decoder", Product(cells, 9 * config.code_dim, widths[last])
    yield from _residual(cells, widths[last], widths[last])
    yield from _pixel_attention(images, side**2, widths[last])
    yield from _residual(cells, widths[last], widths[last])
    entering = widths[last]
    for index in range(last, -1, -1):
        cells = images * (side * 2 ** (last - index)) ** 2
        for _ in range(config.blocks + 1):
            yield from _residual(cells, entering, widths[index])
            entering = widths[index]
            if index == last:
                yield from _pixel_attention(images, side**2, entering)
        if index:
            yield "convolutions", Product(4 * cells, 9 * entering, entering)
    yield "decoder", Product(cells, 9 * entering, 3 * config.patch**2)


def _residual(cells: int, entering: int, leaving: int) -> Iterator[tuple[Unit, Product]]:
    yield "convolutions", Product(cells, 9 * entering, leaving)
    yield "convolutions", Product(cells, 9 * leaving, leaving)
    if entering != leaving:
        yield "decoder", Product(cells, entering, leaving)


def _pixel_attention(images: int, cells: int, width: int) -> Iterator[tuple[Unit, Product]]:
    yield "decoder", Product(images * cells, width, 3 * width)
    for _ in ("scores", "values"):
        yield "decoder", Product(images * cells**2, width, 1, has_weights=False)
    yield "decoder", Product(images * cells, width, width)
