"""Convolutions of the decoder with fewer multiplications (Winograd 1980; Lavin and Gray, arXiv 1509.09308).

A piece of a row convolved with k weights is a product of two polynomials. Taken at 4 + k - 1 points it needs as many
multiplications for 4 outputs, not 4 k; over rows and columns 36 in place of 144 where k is 3, 25 in place of 64 where
k is 2. Turning a map into values at the points, and back, is little work beside the products of many channels, and here
a matrix product, too: of the 4 + k - 1 rows (then columns) of each tile with a table.

Letters: C channels in, O channels out, k side of the kernel, a = 4 + k - 1 points, h w rows and columns, t tiles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from star_cli.models.convolution import Convolution, PlainConvolution, WidenedConvolution
from star_cli.models.processor import has_bfloat16

TILE = 4
"""Outputs of a tile along a row. With 6, 20 % of the plain way's multiplications are left and not 25, but rounding and
the tables' own products grow: 10 % faster with 160 channels, 10 % slower with 320, rounding 3 times as coarse."""
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
"""Where the polynomials are taken, and at infinity. Rounding is 1.7 to 2.5 times that of the plain convolution (root
mean square, 320 and 160 channels); with 2 in place of 1/2 half as much again."""
NARROWEST = 128
"""Channels in and out from which the products are worth the tables. 2 cores with AVX2, k = 3: 0.9 times the speed of
oneDNN's convolution at 64 channels, 1.2 at 96, 1.6 at 128, 2.0 at 160, 2.4 at 320; k = 2: 1.0 at 96, 1.5 at 160. Not
measured with AVX-512."""
MOST_KEPT = 2**17
"""C O up to which the weights' values at the points, four to six times as many as the weights, are kept."""
FEWEST_CELLS = 2**10
"""Of a strip, below which making the values for it costs what they save."""
_WORKED_BYTES = 6 * 2**20
"""Of the values at the points of one row of them, which are worked on at a time: about what the caches keep."""


class WinogradConvolution(Convolution):
    """In float32, up to rounding the plain one.

    Args:
        weight: (O, C, k, k), float32; k 2 or 3.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        self._into, of_weight, self._back = (each.float().contiguous() for each in tables(weight.shape[-1]))
        both, points = torch.kron(of_weight, of_weight), len(of_weight)  # (a a, k k): rows and columns at once
        kernel = weight.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (O, k k, C), a view of what is channels last
        self._weights = torch.bmm(both.expand(len(kernel), -1, -1), kernel).unflatten(1, (points, points))
        self._bias = bias.detach()

    def __call__(self, strip: Tensor, padding: tuple[int, int]) -> Tensor:
        """See `Convolution`."""
        reach, outputs = len(self._into) - TILE, len(self._bias)  # k - 1
        height, width = (strip.shape[dim] + 2 * padding[dim - 2] - reach for dim in (2, 3))
        place = strip.new_empty(1, height, width, outputs).permute(0, 3, 1, 2)
        self.write(strip, padding, place)
        return place

    def write(
        self, strip: Tensor, padding: tuple[int, int], place: Tensor, *, after_silu: bool = False, adds: bool = False
    ) -> None:
        """See `Convolution`; the last step writes, or adds, where the result belongs, without a copy."""
        outputs, points, _, channels = self._weights.shape
        reach = points - TILE  # k - 1
        height, width = place.shape[2:]
        rows = math.ceil(height / TILE)  # of tiles
        columns = math.ceil(width / TILE) + 1  # one more than are needed, so that all are evenly apart
        above, left = padding
        below, right = TILE * rows + reach - above - strip.shape[2], TILE * columns - left - strip.shape[3]
        frame = (above, below, left, right)
        padded = _framed(strip[0].permute(1, 2, 0), frame, after_silu)  # (4 rows + k - 1, 4 columns, C)
        lines = place[0].permute(1, 2, 0).view(height, width * outputs)
        at_once = max(1, _WORKED_BYTES // (4 * points * columns * max(channels, outputs)))
        at_once = math.ceil(rows / math.ceil(rows / at_once))
        for first in range(0, rows, at_once):
            top, bottom = TILE * first, TILE * min(first + at_once, rows)
            self._tiles(padded[top : bottom + reach], lines[top:bottom], adds)

    def fitting(self, rows: int) -> int:
        """See `Convolution`: as many as fill whole tiles."""
        beyond = 2 - (len(self._into) - TILE)  # of a kernel of 2 the row above makes one result more
        whole = (rows + beyond) // TILE * TILE - beyond
        return whole if whole > 0 else rows

    def _tiles(self, padded: Tensor, lines: Tensor, adds: bool) -> None:
        """Some rows of tiles: (4 rows + k - 1, 4 columns, C) -> their lines of the result, (4 rows or fewer, x O)."""
        outputs, points, _, channels = self._weights.shape
        rows, line = math.ceil(len(lines) / TILE), padded.shape[1]
        tiles = rows * line // TILE
        # rows of the map to values at the points; the last tile of the last row reads past its end
        by_row = padded.new_empty(points * rows * line + points, channels)
        windows = _windows(padded, rows, points, line * channels)
        wide = by_row[: points * rows * line].view(points, rows, line * channels)
        torch.bmm(self._into.expand(rows, -1, -1), windows, out=wide.transpose(0, 1))
        back = padded.new_empty(points, tiles, TILE, outputs)
        values = padded.new_empty(tiles, points, channels)
        products = padded.new_empty(points, tiles, outputs)
        for row in range(points):
            windows = _windows(by_row[row * rows * line :], tiles, points, channels)
            torch.bmm(self._into.expand(tiles, -1, -1), windows, out=values)
            torch.bmm(values.transpose(0, 1), self._weights[:, row].permute(1, 2, 0), out=products)
            if row == 1:  # at the point 1 of rows and columns, whose value counts once for every output
                products[1] += self._bias
            torch.bmm(self._back.expand(tiles, -1, -1), products.transpose(0, 1), out=back[row])
        by_tile = back.view(points, rows, line * outputs)[..., : lines.shape[1]].transpose(0, 1)  # (rows, a, x O)
        whole, beyond = divmod(len(lines), TILE)
        if whole:
            _multiply(self._back, by_tile[:whole], lines[: TILE * whole].unflatten(0, (whole, TILE)), adds)
        if beyond:  # the last tiles reach past the map
            _multiply(self._back[:beyond], by_tile[whole:], lines[TILE * whole :][None], adds)


class WideWinogradConvolution(Convolution):
    """The same, made anew for each strip that is worth it: kept, all those of a published tokenizer would be 0.6 GB.

    Wide convolutions are few, and far from the picture: their maps are a few strips, and what is made for them, in a
    quarter of their time, is gone before the decoder's largest maps come.

    Args:
        weight: (O, C, 3, 3), float32.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        self._given = weight.detach(), bias.detach()

    def __call__(self, strip: Tensor, padding: tuple[int, int]) -> Tensor:
        """See `Convolution`."""
        return self._made_for(strip)(strip, padding)

    def write(
        self, strip: Tensor, padding: tuple[int, int], place: Tensor, *, after_silu: bool = False, adds: bool = False
    ) -> None:
        """See `Convolution`."""
        self._made_for(strip).write(strip, padding, place, after_silu=after_silu, adds=adds)

    def _made_for(self, strip: Tensor) -> Convolution:
        is_worth_it = strip[0, 0].numel() >= FEWEST_CELLS
        return WinogradConvolution(*self._given) if is_worth_it else PlainConvolution(*self._given)


def _multiply(table: Tensor, values: Tensor, place: Tensor, adds: bool) -> None:
    """The table times each matrix, written to a place or added to what stands there."""
    each = table.expand(len(values), -1, -1)
    if adds:
        place.baddbmm_(each, values)
    else:
        torch.bmm(each, values, out=place)


def _framed(values: Tensor, frame: tuple[int, int, int, int], after_silu: bool) -> Tensor:
    """(y, x, C), or its SiLU, with zeros around it. `F.pad` writes zeros everywhere first: decoding is 5 % slower."""
    above, below, left, right = frame
    rows, columns, channels = values.shape
    framed = values.new_empty(above + rows + below, left + columns + right, channels)
    middle = framed[above : above + rows]
    for edge in (framed[:above], framed[above + rows :], middle[:, :left], middle[:, left + columns :]):
        edge.zero_()
    middle = middle[:, left : left + columns]
    if after_silu:
        torch.ops.aten.silu.out(values, out=middle)
    else:
        middle.copy_(values)
    return framed


def _windows(lines: Tensor, count: int, points: int, width: int) -> Tensor:
    """Windows of `points` lines of so many numbers, each 4 lines after the one before: (count, points, width)."""
    return lines.as_strided((count, points, width), (TILE * width, width, 1), lines.storage_offset())


def tables(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """What turns a tile, and a kernel, into values at the points, and the products back (Cook and Toom's algorithm).

    With the three tables B, G, A a row d of a map, convolved with the weights g, is A ((B d) * (G g)).

    Args:
        side: k.
    Returns:
        B (a, a), G (a, k), A (4, a), float64.
    """
    count = TILE + side - 1
    return torch.linalg.inv(_powers(count, count)).T, _powers(count, side), _powers(count, TILE).T


def _powers(count: int, length: int) -> Tensor:
    """What each coefficient of a polynomial counts for at each point, (count, length); at infinity the last alone."""
    table = torch.zeros(count, length, dtype=torch.float64)
    exponents = torch.arange(length, dtype=torch.float64)
    for row, point in zip(table, POINTS[: count - 1], strict=False):
        row.copy_(torch.tensor(point, dtype=torch.float64) ** exponents)
    table[-1, -1] = 1
    return table


def fewest_multiplications(weight: Tensor, bias: Tensor) -> Convolution:
    """Winograd's convolution where that is faster, else torch's; in the dtype of the weight (O, C, k, k).

    By shapes and by what the processor is, never by a measurement: bytes of pictures follow it.
    """
    if weight.dtype == torch.bfloat16 and not has_bfloat16():
        return WidenedConvolution(fewest_multiplications(weight.float(), bias.float()))
    outputs, channels = weight.shape[:2]
    # small products in batches are MKL's strength, and were not looked at elsewhere
    is_there = weight.dtype == torch.float32 and torch.backends.mkl.is_available()
    if is_there and min(outputs, channels) >= NARROWEST:
        if outputs * channels <= MOST_KEPT:
            return WinogradConvolution(weight, bias)
        if weight.shape[-1] == 3:  # wide doublings come in many strips
            return WideWinogradConvolution(weight, bias)
    return PlainConvolution(weight, bias)
