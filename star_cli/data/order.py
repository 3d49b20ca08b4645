"""Which pictures a step sees: every epoch in an order of its own, without a list of it.

A Feistel network over numbers of an even count of bits is a permutation whatever its rounds compute; applied again
until the number falls below n (cycle walking, Black and Rogaway 2002), it is one of 0 .. n - 1.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from star_cli.errors import OptionError

_ROUNDS = 6
_MASK = 2**64 - 1


class RowOrder:
    """Rows 0 .. count - 1 in a random order, each epoch in another one; each row once an epoch.

    Memory and the time to find any position do not grow with `count`, so a run resumes at any step at once. A batch
    may end one epoch and begin the next.

    Args:
        count: number of rows.
        seed: of the orders of all epochs.
    Raises:
        OptionError: no row.
    """

    def __init__(self, count: int, seed: int):
        if count < 1:
            raise OptionError(f"an order needs at least one row, not {count}")
        self.count, self.seed = count, seed
        self._half = ((count - 1).bit_length() + 1) // 2 or 1  # bits of each half

    def rows(self, step: int, batch_size: int) -> list[int]:
        """The rows of one step, when every step has `batch_size` of them."""
        first = step * batch_size
        return [self.at(position) for position in range(first, first + batch_size)]

    def at(self, position: int) -> int:
        """The row at a position, counted from the first row of the first epoch."""
        epoch, place = divmod(position, self.count)
        keys = _keys(self.seed, epoch)
        while True:
            place = self._permuted(place, keys)
            if place < self.count:
                return place

    def _permuted(self, place: int, keys: tuple[int, ...]) -> int:
        half, mask = self._half, 2**self._half - 1
        left, right = place >> half, place & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        return left << half | right


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    """One key of 64 bits a round."""
    told = hashlib.blake2b(f"rows {seed} {epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(told[at : at + 8], "little") for at in range(0, len(told), 8))


def _mixed(value: int) -> int:
    """64 bits in which each depends on all of `value`: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
