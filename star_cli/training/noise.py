"""What the losses draw by chance: a function of stage, seed, step and row alone.

A resumed run repeats it bit for bit, and a row draws the same whichever process, or part of the batch, it is in.

Letters: B images, L tokens of the schedule.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from star_cli.models.schedule import ScaleSchedule


@dataclass(frozen=True)
class Chance:
    """The chance of one step."""

    stage: str
    """Name of the stage, so that two stages of one recipe draw differently."""
    seed: int
    step: int

    def generator(self, purpose: str, row: int | None = None) -> torch.Generator:
        """A generator on the CPU, for one purpose, of the whole batch or of one row."""
        key = f"{self.stage} {self.seed} {self.step} {purpose} {row}"
        digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def noisy_tokens(self, tokens: Tensor, rows: Sequence[int], share: float, codes: int) -> Tensor:
        """Tokens of which a share was replaced by random codes.

        Args:
            tokens: (B, L), int64.
            rows: place of each row in the whole batch, B of them.
            share: how likely each token is replaced.
            codes: V, how many codes there are; the true one may be drawn, too.
        """
        replaced, drawn = [], []
        for row in rows:
            generator = self.generator("token noise", row)
            replaced.append(torch.rand(tokens.shape[1], generator=generator) < share)
            drawn.append(torch.randint(codes, (tokens.shape[1],), generator=generator))
        return torch.where(
            torch.stack(replaced).to(tokens.device), torch.stack(drawn).to(tokens.device, tokens.dtype), tokens
        )

    def branch_weights(self, depth: int, rows: Sequence[int], rate: float) -> Tensor:
        """Stochastic depth: which branches of which block count for a row, (depth, 2, B) (VAR; Huang et al. 2016).

        Args:
            depth: blocks.
            rows: place of each row in the whole batch, B of them.
            rate: how often the last block's branches are left out; rises linearly from 0 at the first.
        Returns:
            0 where a branch is left out, else 1 / (1 - the block's rate).
        """
        left = 1 - torch.linspace(0, rate, depth)[:, None]  # (depth, 1)
        drawn = [torch.rand(depth, 2, generator=self.generator("stochastic depth", row)) for row in rows]
        return torch.stack([(one < left) / left for one in drawn], dim=-1)

    def kept_tokens(self, schedule: ScaleSchedule, count: int) -> Tensor | None:
        """Which tokens take part when some of the last scale's are left out at random, (L,) bool (STAR, 1024 px).

        The same for the whole batch, as published. None when all take part: `count` is 0, or there are no more.
        """
        gone = schedule.length - count
        if count == 0 or gone <= 0:
            return None
        keep = torch.ones(schedule.length, dtype=torch.bool)
        order = torch.randperm(schedule.sizes[-1], generator=self.generator("token drop"))
        keep[schedule.offsets[-2] + order[:gone]] = False
        return keep

    def visible_tokens(self, rows: Sequence[int], count: int) -> Tensor:
        """Which tokens the stable head is shown in training, (B, count) bool (STAR, stable sampling).

        Each row draws r evenly from 0 to 1 and shows every token with probability arccos(r) / (pi / 2): about the
        shares that the steps of `reveal_counts` pass through.
        """
        visible = []
        for row in rows:
            generator = self.generator("visible tokens", row)
            share = torch.rand((), generator=generator).arccos() / (math.pi / 2)
            visible.append(torch.rand(count, generator=generator) < share)
        return torch.stack(visible)
