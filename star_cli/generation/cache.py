"""The KV cache: keys and values of all scales so far, in memory taken once.

Nobody looks back at the last scale, which holds nearly half of all tokens. Its keys and values stand behind the others
while a block attends, in memory that the blocks lend each other (depth 30, 1024 px, guided, bfloat16: 2.6 GB in place
of 4.4).

Letters: B rows, N heads, L tokens that are kept, K head width.
"""

from __future__ import annotations

from star_cli.models.attention import KeysValues


class _Lent:
    """Memory for the keys and values that one block after another attends to."""

    def __init__(self) -> None:
        self._held: KeysValues | None = None

    def take(self, like: KeysValues, length: int) -> KeysValues:
        """Room for (B, N, length, K) each, of the dtype of the values; what stood in it is gone."""
        if self._held is None or self._held.values.shape[:3] != (*like.values.shape[:2], length):
            self._held = None  # goes before the next comes
            self._held = _room(like, length)
        return self._held


def _room(like: KeysValues, length: int) -> KeysValues:
    batch, heads, _, width = like.values.shape
    shape = (batch, heads, length, width)
    return KeysValues(like.values.new_empty(shape), like.values.new_empty(shape))


class KVCache:
    """Keys and values of one block. Made empty for one picture; memory is taken at the first scale.

    Args:
        length: L; a scale that no longer fits is the last one, and is not kept.
        lent: where that one is joined to the others; shared by the caches of all blocks.
    """

    def __init__(self, length: int, lent: _Lent | None = None):
        self.length = length
        self.filled = 0
        self._held: KeysValues | None = None
        self._lent = lent or _Lent()

    def append(self, new: KeysValues) -> KeysValues:
        """Take one scale; return views of all scales so far, (B, N, filled + its tokens, K) each.

        Those of a scale that is not kept hold until another block's cache is asked.
        """
        if self._held is None:
            self._held = _room(new, self.length)
        end = self.filled + new.keys.shape[2]
        if end > self.length:
            room = self._lent.take(self._held, end)
            for joined, held in zip(room, self._held, strict=True):
                joined[:, :, : self.filled] = held[:, :, : self.filled]
        else:
            room = self._held
        # One pass over the new ones, their change of precision included: attention wants keys in one piece.
        for joined, part in zip(room, new, strict=True):
            joined[:, :, self.filled : end] = part
        if room is self._held:
            self.filled = end
        return KeysValues(room.keys[:, :, :end], room.values[:, :, :end])

    def keep_rows(self, rows: int) -> None:
        """Go on with the first rows alone."""
        if self._held is not None:
            self._held = KeysValues(self._held.keys[:rows], self._held.values[:rows])


def make_caches(blocks: int, length: int) -> list[KVCache]:
    """One empty cache per block.

    Args:
        blocks: how many.
        length: tokens of all scales that a later one looks back at: `schedule.offsets[-2]` for a whole picture.
    """
    lent = _Lent()
    return [KVCache(length, lent) for _ in range(blocks)]
