"""Drawing's decoder for a CPU: the layers of `Decoder`, strip by strip and in place.

A picture decoded whole needs several activations of full size. Here a strip of rows passes norm, SiLU and convolution
by itself, and a block keeps two activations of full size: its input, to which it adds in place, and the map between its
convolutions. Group norms see the statistics of the whole map, attention the whole latent: nothing differs from
`Decoder` but rounding.

Letters: C channels, Z code width, h w latent, y x rows and columns of a level, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import ShapeError
from star_cli.models.convolution import Convolution, MakeConvolution, PlainConvolution
from star_cli.models.vqvae import Double, Level, MultiScaleVQVAE, ResidualBlock

STRIP_BYTES = 8 * 2**20
"""Of one strip of an activation. Not chosen by free memory: rounding follows the strips, and bytes of pictures it."""
_MOST_SHARES = 32
"""Of a strip's sums: each channel's is split into as many, at the most. Rounding is that of `sum`, in half the time."""


class StripDecoder:
    """Decodes one picture in a bounded amount of memory; what `MultiScaleVQVAE.decode` draws, up to rounding.

    Args:
        vqvae: in its dtype; its weights must not change afterwards. The decoder's are laid out channels last.
        strip_bytes: size of a strip; never less than a row.
        convolution: makes the convolutions of blocks and doublings; nearly all work is theirs.
    """

    def __init__(
        self,
        vqvae: MultiScaleVQVAE,
        strip_bytes: int = STRIP_BYTES,
        convolution: MakeConvolution = PlainConvolution,
    ):
        self.vqvae = vqvae
        self.strip_bytes = strip_bytes
        vqvae.decoder.to(memory_format=torch.channels_last)
        self._convolutions: dict[nn.Conv2d, Convolution] = {
            vqvae.decoder.head: PlainConvolution(*_of(vqvae.decoder.head))
        }
        for part in vqvae.decoder.modules():
            if isinstance(part, ResidualBlock):
                self._convolutions |= {conv: convolution(*_of(conv)) for conv in (part.conv1, part.conv2)}
            elif isinstance(part, Double):
                weight, bias = _of(part.conv)
                self._convolutions[part.conv] = convolution(fold_doubling(weight), bias.repeat(4))

    @torch.inference_mode()
    def __call__(self, f_hat: Tensor) -> Tensor:
        """Final f_hat (1, Z, h, w) -> image (1, 3, H, W), float32 in -1..1.

        Raises:
            ShapeError: more than one picture.
        """
        if len(f_hat) != 1:
            raise ShapeError(f"pictures are decoded one at a time, not {len(f_hat)}")
        entry, decoder = self.vqvae.after_quantizer, self.vqvae.decoder
        latent = entry(f_hat.to(entry.weight.dtype)).contiguous(memory_format=torch.channels_last)
        x = self._finished(decoder.stem(latent))
        x = self._attend(self._block(x, decoder.middle.block1), decoder.middle.attention)
        x = self._block(x, decoder.middle.block2)
        for level in cast("Iterable[Level]", reversed(decoder.levels)):
            for block, attention in zip_longest(cast("Iterable[ResidualBlock]", level.blocks), level.attention):
                x = self._block(x, block)
                if attention is not None:
                    x = self._attend(x, attention)
            if isinstance(level.resize, Double):
                x = self._double(x, level.resize)
        return self._pixels(x)

    def _block(self, x: _Map, block: ResidualBlock) -> _Map:
        between = x.blank(block.conv1.out_channels)
        for top, bottom in self._strips(x, block.conv1):
            self._activate_and_convolve(block.conv1, x.normed(block.norm1, top, bottom), between, (top, bottom))
        total = x if isinstance(block.shortcut, nn.Identity) else x.blank(block.conv2.out_channels)
        total.forget()
        for top, bottom in self._strips(between, block.conv2):
            if total is not x:
                total.rows(top, bottom).copy_(block.shortcut(x.rows(top, bottom)))
            strip = between.normed(block.norm2, top, bottom)
            self._activate_and_convolve(block.conv2, strip, total, (top, bottom), adds=True)
        return total

    def _attend(self, x: _Map, attention: nn.Module) -> _Map:
        return self._finished(attention(x.values))

    def _finished(self, values: Tensor) -> _Map:
        made = _Map(values, self.strip_bytes)
        made.count(0, values.shape[-2])
        return made

    def _double(self, x: _Map, resize: Double) -> _Map:
        """Nearest-neighbour doubling and the 3x3 convolution after it as one 2x2 convolution (see `fold_doubling`).

        4 products for each pixel instead of 9. One core with AVX-512, published widths: 1.8 to 2.1 times as fast in
        float32, 1.8 to 1.9 in bfloat16; the shipped model's: 1.7 to 1.9 in both.
        """
        channels, width = resize.conv.out_channels, x.values.shape[-1]
        larger = x.blank(channels, 2)
        for top, bottom in self._strips(x, resize.conv, 4):
            rows = bottom - top
            quarters = self._convolve(resize.conv, x.padded(top, bottom), rows).unflatten(1, (2, 2, channels))
            for down in (0, 1):
                for right in (0, 1):
                    place = larger.values[:, :, 2 * top + down : 2 * bottom : 2, right::2]
                    place.copy_(quarters[:, down, right, :, down : down + rows, right : right + width])
            larger.count(2 * top, 2 * bottom)
        return larger

    def _pixels(self, x: _Map) -> Tensor:
        decoder, patch = self.vqvae.decoder, self.vqvae.config.patch
        height, width = x.values.shape[-2:]
        image = torch.empty(1, 3, height * patch, width * patch, device=x.values.device)
        for top, bottom in self._strips(x, decoder.head):
            activated = F.silu(x.normed(decoder.norm, top, bottom), inplace=True)
            strip = self._convolve(decoder.head, activated, bottom - top)
            image[:, :, top * patch : bottom * patch] = decoder.unfold(strip).clamp_(-1, 1)
        return image

    def _convolve(self, conv: nn.Conv2d, strip: Tensor, rows: int) -> Tensor:
        """Convolve what `_Map.padded` or `normed` gave for so many rows."""
        return self._convolutions[conv](strip, _padding(strip, rows))

    def _activate_and_convolve(
        self, conv: nn.Conv2d, strip: Tensor, to: _Map, span: tuple[int, int], adds: bool = False
    ) -> None:
        """Write the convolution of a strip's SiLU to rows of a map, or add it to them, and count them."""
        top, bottom = span
        padding, place = _padding(strip, bottom - top), to.rows(top, bottom)
        self._convolutions[conv].write(strip, padding, place, after_silu=True, adds=adds)
        to.count(top, bottom)

    def _strips(self, x: _Map, conv: nn.Conv2d, times: int = 1) -> Iterator[tuple[int, int]]:
        """First row, and the row after the last, of each strip; a strip leaves the convolution `times` as wide."""
        height, width = x.values.shape[-2:]
        row_bytes = max(conv.in_channels, conv.out_channels * times) * width * x.values.element_size()
        rows = self._convolutions[conv].fitting(max(1, self.strip_bytes // row_bytes))
        for top in range(0, height, rows):
            yield top, min(top + rows, height)


class _Map:
    """An activation (1, C, y, x), channels last, with the sums that its group norm needs."""

    def __init__(self, values: Tensor, strip_bytes: int):
        self.values = values
        self._strip_bytes = strip_bytes
        self._is_strip = values.nbytes <= strip_bytes  # then a norm of the whole is cheaper than sums
        self.forget()

    def blank(self, channels: int, times: int = 1) -> _Map:
        """A map to be written, of `times` the height and width."""
        size = (1, channels, *(times * side for side in self.values.shape[-2:]))
        like = self.values
        values = torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
        return _Map(values, self._strip_bytes)

    def rows(self, top: int, bottom: int) -> Tensor:
        """(1, C, rows, x), a view."""
        return self.values[:, :, top:bottom]

    def count(self, top: int, bottom: int) -> None:
        """Add rows that were written to the sums, while the cache still has them."""
        if self._is_strip:
            return
        cells = self.rows(top, bottom).permute(0, 2, 3, 1).flatten(0, 2).float()  # (rows * x, C)
        # The norm's own operator: two passes, no copy, nothing cancels. It adds up a channel cell by cell, so it is
        # told of several times as many channels.
        shares = next(shares for shares in range(_MOST_SHARES, 0, -1) if len(cells) % shares == 0)
        wide = cells.view(-1, shares * cells.shape[1])
        moments = torch.batch_norm_update_stats(wide, None, None, 0.0)
        mean, variance = (each.double().view(shares, -1) for each in moments)
        self._sums += len(wide) * torch.stack([mean.sum(0), (variance + mean.square()).sum(0)])

    def forget(self) -> None:
        """Begin the sums anew, for all rows will be written again."""
        self._sums = torch.zeros(2, self.values.shape[1], dtype=torch.float64, device=self.values.device)

    def normed(self, norm: nn.GroupNorm, top: int, bottom: int) -> Tensor:
        """Rows as `padded` gives them, behind a norm of the whole map; nobody else's tensor."""
        if self._is_strip:
            normed = self._rows(norm(self.values), top, bottom)
        else:  # a batch norm whose statistics are those of the groups
            mean, variance = self._moments(norm)
            weight, bias = norm.weight.float(), norm.bias.float()
            normed = F.batch_norm(self._rows(self.values, top, bottom), mean, variance, weight, bias, eps=norm.eps)
        return self._pad(normed, top, bottom)

    def padded(self, top: int, bottom: int) -> Tensor:
        """A strip with a row more above and below, zeros beyond the map: (1, C, rows + 2, x); all rows come alone."""
        return self._pad(self._rows(self.values, top, bottom), top, bottom)

    def _moments(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel's group, (C) each."""
        sums = self._sums.unflatten(1, (norm.num_groups, -1)).mean(2) / self.values[0, 0].numel()
        mean, squares = sums.repeat_interleave(norm.num_channels // norm.num_groups, 1).unbind()
        return mean.float(), (squares - mean.square()).clamp_(min=0).float()

    def _rows(self, values: Tensor, top: int, bottom: int) -> Tensor:
        return values[:, :, max(top - 1, 0) : bottom + 1]

    def _pad(self, rows: Tensor, top: int, bottom: int) -> Tensor:
        above, below = int(top == 0), int(bottom == self.values.shape[-2])
        return rows if above == below else F.pad(rows, (0, 0, above, below))


def _padding(strip: Tensor, rows: int) -> tuple[int, int]:
    """Rows, columns of zeros that a strip still lacks, which is to become so many rows."""
    return int(strip.shape[-2] == rows), 1


def fold_doubling(weight: Tensor) -> Tensor:
    """A 3x3 kernel that follows nearest-neighbour doubling, as a 2x2 kernel on what is doubled.

    Of the three pixels a kernel sees in a row, two are copies of one cell: left, right right to the left of a cell's
    middle, left left, right to the right of it. Their weights are added up once, in float32.

    Args:
        weight: (C', C, 3, 3).
    Returns:
        (4 C', C, 2, 2), rows by pixel of a cell: above left, above right, below left, below right.
    """
    kernel = weight.float()
    for dim in (2, 4):  # the second time, the kernel's columns: its rows have become two dimensions
        first, middle, last = kernel.unbind(dim)
        halves = [torch.stack([first, middle + last], dim), torch.stack([first + middle, last], dim)]
        kernel = torch.stack(halves, 0 if dim == 2 else 1)
    folded = kernel.flatten(0, 2).to(weight.dtype)
    return folded.detach().contiguous(memory_format=torch.channels_last)


def _of(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert conv.bias is not None
    return conv.weight, conv.bias
