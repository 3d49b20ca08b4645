"""The KV cache: keys and values of all scales so far, in memory taken once.

Letters: B rows, N heads, L tokens of the schedule, K head width.
"""

from __future__ import annotations

from star_cli.models.attention import KeysValues


class KVCache:
    """Keys and values of one block. Made empty for one picture; memory is taken at the first scale."""

    def __init__(self, length: int):
        self.length = length
        self.filled = 0
        self._held: KeysValues | None = None

    def append(self, new: KeysValues) -> KeysValues:
        """Keep one scale; return views of all scales so far, (B, N, filled, K) each."""
        if self._held is None:
            batch, heads, _, width = new.keys.shape
            shape = (batch, heads, self.length, width)
            self._held = KeysValues(new.values.new_empty(shape), new.values.new_empty(shape))
        end = self.filled + new.keys.shape[2]
        # One pass over the new ones, their change of precision included. The last scale's come here, too: attention
        # wants keys in one piece, and to write them behind the others is less than to join two pieces.
        for held, part in zip(self._held, new, strict=True):
            held[:, :, self.filled : end] = part
        self.filled = end
        return KeysValues(self._held.keys[:, :, :end], self._held.values[:, :, :end])

    def keep_rows(self, rows: int) -> None:
        """Go on with the first rows alone."""
        if self._held is not None:
            self._held = KeysValues(self._held.keys[:rows], self._held.values[:rows])


def make_caches(blocks: int, length: int) -> list[KVCache]:
    """One empty cache per block."""
    return [KVCache(length) for _ in range(blocks)]
