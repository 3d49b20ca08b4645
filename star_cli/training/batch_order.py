"""Which kind of batch a step has: a function of the seed and the step alone.

Nothing is drawn one after another, so a resumed run, or a process that makes every second batch, sees what an
uninterrupted one would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


class PortionOrder:
    """Which of several kinds of batch each step has, and how many of that kind came before it.

    Steps go in rounds of a thousand. A round has each kind as often as its share says, shuffled; so how often one came
    before a step follows from the number of whole rounds and a look into one, and each kind can go through its own
    epochs with `RowOrder.rows(how many came before, its batch size)` however the batch sizes differ.

    Args:
        shares: how often each kind comes, relative to the others.
        seed: decides the order inside the rounds; any words.
    """

    ROUND = 1000

    def __init__(self, shares: Sequence[float], seed: str):
        self.seed = seed
        self.counts = _apportion(shares, self.ROUND)
        self._round: tuple[int, list[tuple[int, int]]] | None = None

    def at(self, step: int) -> tuple[int, int]:
        """Which kind a step has, and how many batches of it came before."""
        if len(self.counts) == 1:
            return 0, step
        number, place = divmod(step, sum(self.counts))
        if self._round is None or self._round[0] != number:
            self._round = number, self._shuffled(number)
        kind, earlier = self._round[1][place]
        return kind, number * self.counts[kind] + earlier

    def _shuffled(self, number: int) -> list[tuple[int, int]]:
        kinds = [kind for kind, count in enumerate(self.counts) for _ in range(count)]
        random.Random(f"portions {self.seed} {number}").shuffle(kinds)
        seen = [0] * len(self.counts)
        steps = []
        for kind in kinds:
            steps.append((kind, seen[kind]))
            seen[kind] += 1
        return steps


def _apportion(shares: Sequence[float], seats: int) -> list[int]:
    """Whole numbers in the proportion of the shares, together `seats`, or a few more: each at least 1."""
    exact = [share / sum(shares) * seats for share in shares]
    counts = [int(value) for value in exact]
    by_rest = sorted(range(len(shares)), key=lambda kind: counts[kind] - exact[kind])
    for kind in by_rest[: seats - sum(counts)]:
        counts[kind] += 1
    return [max(count, 1) for count in counts]
