"""What a batch will take: time and disk, from what its journal says of images that were drawn before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from star_cli.batch.journal import Record


@dataclass
class Estimate:
    """Seconds and bytes of the images to come.

    Args:
        records: of images that were drawn before.
    """

    records: Iterable[Record]

    def __post_init__(self) -> None:
        self._seconds: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._bytes: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for record in self.records:
            if record.status == "done":
                for sums, value in ((self._seconds, record.seconds), (self._bytes, record.size_bytes)):
                    if value:
                        sums[record.res][0] += value
                        sums[record.res][1] += 1

    def seconds(self, res: int) -> float | None:
        """Of one image; None when none of this resolution was drawn."""
        return _mean(self._seconds, res)

    def size_bytes(self, res: int) -> tuple[float, bool]:
        """Of one image's file, and whether it was measured: else it is at most its pixels."""
        mean = _mean(self._bytes, res)
        return (3.0 * res * res, False) if mean is None else (mean, True)


def _mean(sums: dict[int, list[float]], res: int) -> float | None:
    total, count = sums.get(res, (0.0, 0.0))
    return total / count if count else None
