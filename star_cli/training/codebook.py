"""The codebook in training: where it starts, how it moves, which codes are used, and codes that nobody chooses.

Letters: B images, Z code width, V codes, h w latent, l tokens of one scale, L of the schedule, n vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.training.ranks import gather_rows, max_over_ranks, of_first_rank, sum_over_ranks, world
from star_cli.training.vqvae_config import VQVAEStageConfig

MOST_VECTORS = 256
"""Vectors for each code that k-means looks at; more than that tell nothing new."""
_AWAY = 4
"""How far codes are parked, in lengths of the longest."""


@torch.no_grad()
def multi_scale_residuals(latent: Tensor, schedule: ScaleSchedule) -> Tensor:
    """What each scale would have to say if codes were exact: (B, Z, h, w) -> (B * L, Z)."""
    residual, vectors = latent, []
    for side in schedule.sides:
        pooled = F.interpolate(residual, size=(side, side), mode="area")
        vectors.append(pooled.flatten(2).transpose(1, 2).flatten(0, 1))
        residual = residual - F.interpolate(pooled, size=latent.shape[-2:], mode="bicubic")
    return torch.cat(vectors)


@torch.no_grad()
def k_means(vectors: Tensor, count: int, generator: torch.Generator, rounds: int = 12) -> Tensor:
    """Lloyd's algorithm: (n, Z) -> (count, Z). A centre that nobody chose moves to a random vector."""
    if len(vectors) < count:
        vectors = vectors.repeat(-(-count // len(vectors)), 1)
    if len(vectors) > MOST_VECTORS * count:
        vectors = vectors[torch.randperm(len(vectors), generator=generator)[: MOST_VECTORS * count]]
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count]].clone()
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in vectors.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        counts = torch.bincount(nearest, minlength=count)
        lonely = counts == 0
        centres = sums / counts.clamp(min=1)[:, None]
        centres[lonely] = vectors[torch.randint(len(vectors), (int(lonely.sum()),), generator=generator)]
    return centres


def uniform_codes(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Small codes, evenly spread over -1/V..1/V in each channel: (V, Z)."""
    return (torch.rand(count, width, generator=generator) * 2 - 1) / count


@torch.no_grad()
def quieten(quantizer: MultiScaleQuantizer, shortest: Tensor) -> None:
    """The shortest code becomes zero; every other one below `shortest` goes so far away that nothing chooses it."""
    codes = quantizer.codebook.weight
    lengths = codes.norm(dim=1)
    away = codes / lengths.clamp(min=1e-6)[:, None] * _AWAY * lengths.max()
    codes.copy_(torch.where((lengths < shortest)[:, None], away, codes))
    codes[lengths.argmin()] = 0


def parked_codes(codes: Tensor) -> Tensor:
    """Which codes (V, Z) `quieten` has sent away, (V,): all of one length, and no other is nearly as long."""
    lengths = codes.norm(dim=1)
    away = lengths > 0.99 * lengths.max()
    others = lengths[~away]
    is_quiet = others.numel() > 0 and bool(others.max() * 0.8 * _AWAY < lengths.max())
    return away if is_quiet else torch.zeros_like(away)


@torch.no_grad()
def without_parked_codes(vqvae: MultiScaleVQVAE) -> MultiScaleVQVAE:
    """The same, with a codebook of those codes alone that something may choose; itself where none is parked."""
    codes = vqvae.quantizer.codebook.weight
    kept = ~parked_codes(codes)
    if kept.all():
        return vqvae
    smaller = MultiScaleVQVAE(replace(vqvae.config, codebook_size=int(kept.sum()))).to(codes.device)
    smaller.load_state_dict({**vqvae.state_dict(), "quantizer.codebook.weight": codes[kept]})
    return smaller.eval().requires_grad_(False)


class CodebookAverage(nn.Module):
    """Counts how often each code is chosen, and moves the codebook once a step by what was chosen.

    Where the codebook follows an average, each code is the moving average of the residuals that chose it (van den Oord
    et al. 2017, A.1). Either way a code that hardly anything chooses moves to a residual.

    Several processes, and parts of a batch that come one after the other, count together.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, width: int, config: VQVAEStageConfig):
        super().__init__()
        self.config = config
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, width))
        self._noted: tuple[Tensor, Tensor] | None = None
        self._residuals: Sequence[Tensor] = ()
        self._has_started = False

    @property
    def has_started(self) -> bool:
        """Is there a codebook already? Known from the counts, so a resumed run knows too."""
        self._has_started = self._has_started or bool(self.counts.any())
        return self._has_started

    def start(self, codes: Tensor) -> None:
        """Begin with these codes, each as if chosen once."""
        self.counts.fill_(1.0)
        self.sums.copy_(codes)

    @torch.no_grad()
    def note(self, residuals: Sequence[Tensor], tokens: Sequence[Tensor]) -> None:
        """Remember what a forward pass chose, until `move`.

        Args:
            residuals: what was to be said, (B, l, Z) of each scale.
            tokens: the codes that said it, (B, l) of each scale.
        """
        chosen = torch.cat([each.flatten() for each in tokens])
        said = torch.cat([each.flatten(0, 1) for each in residuals])
        counts = torch.bincount(chosen, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, chosen, said)
        if self._noted is not None:
            counts, sums = counts + self._noted[0], sums + self._noted[1]
        self._noted, self._residuals = (counts, sums), residuals

    @torch.no_grad()
    def move(self, quantizer: MultiScaleQuantizer) -> None:
        """Move the codebook by what was noted since the last time; without notes, or finite ones, it stays.

        Args:
            quantizer: owner of the codebook, whose weight is overwritten.
        """
        if self._noted is None:
            return
        counts, sums = (sum_over_ranks(each) for each in self._noted)
        residuals, self._noted, self._residuals = self._residuals, None, ()
        if not sums.isfinite().all():  # an average would keep it for good; the sums tell every process the same
            return
        chosen = round(counts.sum().item())
        self.counts.lerp_(counts, 1 - self.config.codebook_decay)
        self.sums.lerp_(sums, 1 - self.config.codebook_decay)
        codes = quantizer.codebook.weight
        if self.config.codebook == "average":
            self._revive(residuals, chosen)
            # a code that nothing chose for thousands of steps has no mean left, and stays where it was
            kept = self.counts > torch.finfo(torch.float32).tiny
            codes.copy_(torch.where(kept[:, None], self.sums / self.counts[:, None], codes))
        else:
            revived, places = self._revive(residuals, chosen)
            codes[revived] = places

    def _revive(self, noted: Sequence[Tensor], chosen: int) -> tuple[Tensor, Tensor]:
        """Give dead codes the place of a residual each: which they are, (V,) bool, and the places, (dead, Z)."""
        dead = self.counts < self.config.revive_below * chosen / len(self.counts)
        if not dead.any():
            return dead, self.sums[:0]
        residuals = torch.cat([gather_rows(each).flatten(0, 1) for each in noted])
        picked = torch.randint(len(residuals), (int(dead.sum()),)).to(residuals.device)
        places = residuals[of_first_rank(picked)]
        self.counts[dead] = chosen / len(self.counts) * 0.1
        self.sums[dead] = places * self.counts[dead][:, None]
        return dead, places


class CodebookUsage(nn.Module):
    """Which codes the token maps of each side have used lately.

    Args:
        codes: V.
        sides: of all token maps there are.
        window: steps that count as lately.
    """

    last_used: Tensor

    def __init__(self, codes: int, sides: Iterable[int], window: int):
        super().__init__()
        self.rows = {side: row for row, side in enumerate(sorted(set(sides)))}
        self.window = window
        never = torch.iinfo(torch.int32).min
        # the step at which a side last used a code: one write a scale, and no history to keep
        self.register_buffer("last_used", torch.full((len(self.rows), codes), never, dtype=torch.int32))

    def note(self, schedule: ScaleSchedule, tokens: Sequence[Tensor], step: int) -> None:
        """Remember the tokens (B, l) of each scale of a schedule."""
        for side, chosen in zip(schedule.sides, tokens, strict=True):
            self.last_used[self.rows[side], chosen.flatten()] = step

    def agree(self) -> None:
        """Put together what several processes noted."""
        max_over_ranks(self.last_used)

    def figures(self, schedule: ScaleSchedule, step: int) -> dict[str, Tensor]:
        """Share of the codes in use: by any side, and by each side of a schedule."""
        lately = self.last_used > step - self.window  # (sides, V)
        shares = lately.float().mean(1)
        figures = {"codes used": lately.any(0).float().mean()}
        return figures | {f"used side {side}": shares[self.rows[side]] for side in schedule.sides}


def first_codes(vectors: Tensor, config: VQVAEStageConfig, count: int) -> Tensor:
    """The first codebook, the same in all processes: (n, Z) -> (V, Z).

    Args:
        vectors: residuals of a few batches.
        config: says by which rule.
        count: V.
    """
    generator = torch.Generator().manual_seed(0)
    if config.codebook_start == "uniform":
        codes = uniform_codes(count, vectors.shape[1], generator).to(vectors.device)
    else:
        codes = k_means(vectors, count, generator)
    return of_first_rank(codes) if world() > 1 else codes
