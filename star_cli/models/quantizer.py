"""Multi-scale residual quantiser: a latent becomes token maps, coarse to fine, and comes back (VAR, algorithms 1, 2).

Letters: B images, C code width, V codes, h w latent, side of a token map, l = side * side, L tokens of the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.errors import OptionError, ShapeError
from star_cli.models.config import VQVAEConfig
from star_cli.models.schedule import ScaleSchedule


def choose_phi(scale: int, scales: int, count: int) -> int:
    """Which of `count` residual convolutions a scale uses (VAR, section 3.2: shared by neighbouring scales).

    The scale's place between 0 and 1 takes the nearest of `count` ticks, the first when two are equally near. Float64
    on purpose: with 4 ticks, scales 2 and 7 of 10 lie between two ticks, and the last bit decides as it did for the
    released weights.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count  # the published spacing differs at 4
    step = (1 - margin - margin) / (count - 1) if count > 1 else 0.0
    ticks = [index * step + margin for index in range(count)]
    ticks[-1] = 1 - margin
    place = scale / (scales - 1) if scales > 1 else 0.0
    return min(range(count), key=lambda index: abs(ticks[index] - place))


class Phi(nn.Module):
    """phi(h) = (1 - ratio) h + ratio conv(h): smooths what enlarging a token map left rough."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        """(B, C, h, w) -> same."""
        return h * (1 - self.ratio) + self.conv(h) * self.ratio


class MultiScaleQuantizer(nn.Module):
    """One codebook for all scales. Always float32: it decides tokens."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        self.codebook = nn.Embedding(config.codebook_size, config.code_dim)
        count = config.phi_count or config.phi_scales
        self.phi = nn.ModuleList(Phi(config.code_dim, config.phi_ratio) for _ in range(count))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code by squared distance: (..., C) -> (...), int64."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        codes = self.codebook.weight
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1)
        distances = torch.addmm(distances, flat, codes.T, alpha=-2)  # (B * l, V)
        return distances.argmin(1).view(vectors.shape[:-1])

    def look_up(self, tokens: Tensor, side: int) -> Tensor:
        """Code vectors of tokens (B, l): (B, C, side, side)."""
        return self.codebook(tokens).transpose(1, 2).unflatten(2, (side, side))

    def add_scale(
        self, f_hat: Tensor, codes: Tensor, scale: int, schedule: ScaleSchedule, *, in_place: bool = False
    ) -> Tensor:
        """Add one token map to the reconstruction so far (VAR, algorithm 2): enlarge, smooth, add.

        Args:
            f_hat: sum of the smaller scales, (B, C, h, w), float32.
            codes: code vectors of this scale, (B, C, side, side).
            scale: index in the schedule; 0 is the 1x1 map.
            schedule: the scales; h = w = its last side.
            in_place: write the sum over `f_hat`, the same bits; for drawing, where no gradient is asked for.
        Returns:
            The new sum, same shape; `f_hat` itself is left as it was, unless `in_place`.
        Raises:
            ShapeError: `codes` does not have the side the schedule gives this scale.
        """
        if codes.shape[-1] != schedule.sides[scale] or f_hat.shape[-1] != schedule.last_side:
            raise ShapeError(
                f"scale {scale} of {list(schedule.sides)} cannot be {codes.shape[-1]} wide "
                f"in a latent {f_hat.shape[-1]} wide"
            )
        if scale != len(schedule) - 1:
            codes = F.interpolate(codes, size=f_hat.shape[-2:], mode="bicubic")
        smooth = self.phi[self._phi_index(scale, schedule)](codes)
        return f_hat.add_(smooth) if in_place else f_hat + smooth

    def _phi_index(self, scale: int, schedule: ScaleSchedule) -> int:
        if self.config.phi_count == 0 and len(schedule) != len(self.phi):
            raise OptionError(
                f"this tokenizer has one phi for each of {len(self.phi)} scales, the schedule has {len(schedule)}"
            )
        return choose_phi(scale, len(schedule), len(self.phi))

    def next_input(self, f_hat: Tensor, side: int) -> Tensor:
        """f_hat seen at the side of the next scale, averaged by area: (B, C, h, w) -> (B, side * side, C)."""
        # torch averages whole cells alone on Apple's GPU (pytorch issue 96056)
        is_uneven = f_hat.device.type == "mps" and f_hat.shape[-1] % side > 0
        seen = F.interpolate(f_hat.cpu() if is_uneven else f_hat, size=(side, side), mode="area")
        return seen.to(f_hat.device).flatten(2).transpose(1, 2)

    def encode_scales(
        self, latent: Tensor, schedule: ScaleSchedule, added: Callable[[int, Tensor, Tensor], Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Quantise scale by scale (VAR, algorithm 1): yields tokens (B, l) and f_hat so far (B, C, h, w).

        The choice of tokens has no gradient; f_hat has one to codebook and phi.

        Args:
            latent: (B, C, h, w).
            schedule: the scales.
            added: what f_hat gets at a scale, (scale, tokens, f_hat before) -> (B, C, side, side); None: the codes of
                its tokens. Later scales make up for the difference.
        """
        latent = latent.detach()
        f_hat = torch.zeros_like(latent)
        for scale, side in enumerate(schedule.sides):
            residual = latent - f_hat.detach()
            tokens = self.nearest(self.next_input(residual, side))
            codes = self.look_up(tokens, side) if added is None else added(scale, tokens, f_hat)
            f_hat = self.add_scale(f_hat, codes, scale, schedule)
            yield tokens, f_hat

    def decode_scales(self, token_maps: Sequence[Tensor], schedule: ScaleSchedule) -> Iterator[Tensor]:
        """f_hat after each scale, from tokens (B, l) of each scale."""
        side = schedule.last_side
        f_hat = self.codebook.weight.new_zeros(len(token_maps[0]), self.config.code_dim, side, side)
        for scale, tokens in enumerate(token_maps):
            f_hat = self.add_scale(f_hat, self.look_up(tokens, schedule.sides[scale]), scale, schedule)
            yield f_hat

    @torch.no_grad()
    def decode_tokens(self, token_maps: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """The last f_hat of `decode_scales`, (B, C, h, w), and none of those before it."""
        side = schedule.last_side
        f_hat = self.codebook.weight.new_zeros(len(token_maps[0]), self.config.code_dim, side, side)
        for scale, tokens in enumerate(token_maps):
            self.add_scale(f_hat, self.look_up(tokens, schedule.sides[scale]), scale, schedule, in_place=True)
        return f_hat

    def teacher_input(self, token_maps: Sequence[Tensor], schedule: ScaleSchedule) -> Tensor:
        """What the transformer sees of the true scales: f_hat so far at each next side, (B, L - first scale, C).

        `token_maps` may hold fewer scales than the schedule; the result then ends with the input of the last one given.
        """
        known = token_maps[:-1] if token_maps else ()
        inputs = [
            self.next_input(f_hat, schedule.sides[scale + 1])
            for scale, f_hat in enumerate(self.decode_scales(known, schedule) if known else ())
        ]
        if inputs:
            return torch.cat(inputs, dim=1)
        return self.codebook.weight.new_zeros(len(token_maps[0]), 0, self.config.code_dim)
