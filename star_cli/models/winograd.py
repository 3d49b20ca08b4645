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
MOST_WEIGHTS = 2**17
"""C O beyond which the weights, which grow four times (k = 2: six), take more memory than the few convolutions of that
width, at the lowest resolutions, take time."""
_WORKED_BYTES = 6 * 2**20
"""Of the values at the points of one row of them, which are worked on at a time: about what the caches keep."""


class WinogradConvolution(Convolution):
    """In float32, up to rounding the plain one.

    Args:
        weight: (O, C, k, k), float32; k 2 or 3.
        bias: (O,).
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        outputs, channels, side, _ = weight.shape
        into, of_weight, back = tables(side)
        self._into, self._back = into.float().contiguous(), back.float().contiguous()
        both = torch.kron(of_weight, of_weight)  # (a a, k k): rows and columns at once
        values = both.float() @ weight.detach().permute(2, 3, 1, 0).reshape(side * side, channels * outputs)
        self._weights = values.view(len(into), len(into), channels, outputs)
        self._bias = bias.detach()

    def __call__(self, strip: Tensor, padding: tuple[int, int]) -> Tensor:
        """See `Convolution`."""
        points, _, channels, outputs = self._weights.shape
        reach = points - TILE  # k - 1
        height, width = (strip.shape[dim] + 2 * padding[dim - 2] - reach for dim in (2, 3))  # of the result
        rows = math.ceil(height / TILE)  # of tiles
        columns = math.ceil(width / TILE) + 1  # one more than are needed, so that all are evenly apart
        above, left = padding
        below, right = TILE * rows + reach - above - strip.shape[2], TILE * columns - left - strip.shape[3]
        padded = _framed(strip[0].permute(1, 2, 0), (above, below, left, right))  # (4 rows + k - 1, 4 columns, C)
        result = padded.new_empty(rows, TILE, columns, TILE, outputs)
        at_once = max(1, _WORKED_BYTES // (4 * points * columns * max(channels, outputs)))
        at_once = math.ceil(rows / math.ceil(rows / at_once))
        for first in range(0, rows, at_once):
            part = result[first : first + at_once]
            self._tiles(padded[TILE * first : TILE * (first + len(part)) + reach], part)
        return result.flatten(2, 3).flatten(0, 1)[:height, :width].permute(2, 0, 1)[None]

    def fitting(self, rows: int) -> int:
        """See `Convolution`: as many as fill whole tiles."""
        beyond = 2 - (len(self._into) - TILE)  # of a kernel of 2 the row above makes one result more
        whole = (rows + beyond) // TILE * TILE - beyond
        return whole if whole > 0 else rows

    def _tiles(self, padded: Tensor, result: Tensor) -> None:
        """Some rows of tiles: (4 rows + k - 1, 4 columns, C) -> (rows, 4, columns, 4, O), written in place."""
        rows, _, columns, _, outputs = result.shape
        points, channels = len(self._into), padded.shape[2]
        line, tiles = TILE * columns, rows * columns
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
            torch.bmm(values.transpose(0, 1), self._weights[row], out=products)
            if row == 1:  # at the point 1 of rows and columns, whose value counts once for every output
                products[1] += self._bias
            torch.bmm(self._back.expand(tiles, -1, -1), products.transpose(0, 1), out=back[row])
        back = back.view(points, rows, columns * TILE * outputs).transpose(0, 1)
        torch.bmm(self._back.expand(rows, -1, -1), back, out=result.view(rows, TILE, -1))


def _framed(values: Tensor, frame: tuple[int, int, int, int]) -> Tensor:
    """(y, x, C) with zeros around it. `F.pad` writes them everywhere first: decoding takes 5 % longer."""
    above, below, left, right = frame
    rows, columns, channels = values.shape
    framed = values.new_empty(above + rows + below, left + columns + right, channels)
    middle = framed[above : above + rows]
    for edge in (framed[:above], framed[above + rows :], middle[:, :left], middle[:, left + columns :]):
        edge.zero_()
    middle[:, left : left + columns] = values
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
    is_worth_it = min(outputs, channels) >= NARROWEST and outputs * channels <= MOST_WEIGHTS
    # small products in batches are MKL's strength, and were not looked at elsewhere
    if is_worth_it and weight.dtype == torch.float32 and torch.backends.mkl.is_available():
        return WinogradConvolution(weight, bias)
    return PlainConvolution(weight, bias)
