"""Weights before training.

Letters: V codes, Z code width, L tokens of a schedule.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from star_cli.errors import TrainingError
from star_cli.models.attention import CrossAttention, SelfAttention
from star_cli.models.block import Block, FeedForward
from star_cli.models.config import TransformerConfig
from star_cli.models.stable_head import StableHead
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE

SMALL_HEAD = 0.02  # the published trainer's: every code begins about equally likely
QUIET_GAIN, QUIET_SHIFT = 1e-5, 0.5  # VAR's: modulated branches begin nearly silent


@torch.no_grad()
def initialise(transformer: StarTransformer) -> None:
    """Weights as in VAR: truncated normals, branches scaled down with depth, quiet modulation, a small head."""
    config = transformer.config
    _initialise_layers(transformer, config)
    nn.init.trunc_normal_(transformer.start_position, std=_std(config))
    if config.position == "learned":
        nn.init.trunc_normal_(transformer.position_embedding, std=_std(config))
    for module in transformer.blocks:
        _quieten_modulation(module, config)  # type: ignore[arg-type]  # a ModuleList forgets what it holds
    if config.is_head_modulated:
        transformer.head_modulation.weight.mul_(QUIET_SHIFT)
    transformer.head.weight.mul_(SMALL_HEAD)


@torch.no_grad()
def take_over(vqvae: MultiScaleVQVAE, trained: MultiScaleVQVAE) -> None:
    """Encoder and decoder as another VQVAE has learned them, where names and shapes agree.

    Edges and plain areas look much the same in all pictures: on icons, the weights learned on shapes are after 100
    steps where fresh ones are not after 600. The quantiser is left: its codes speak of other latents.

    Raises:
        TrainingError: nothing agrees.
    """
    given = trained.state_dict()
    taken = {
        name: given[name]
        for name, own in vqvae.state_dict().items()
        if name in given and given[name].shape == own.shape and not name.startswith("quantizer.")
    }
    if not taken:
        raise TrainingError("the VQVAE to start from has no tensor of this one's names and shapes")
    vqvae.load_state_dict(taken, strict=False)


@torch.no_grad()
def initialise_stable(head: StableHead) -> None:
    """A stable head's weights, by the rules of `initialise`."""
    _initialise_layers(head, head.config)
    nn.init.trunc_normal_(head.start_position, std=_std(head.config))
    head.head.weight.mul_(SMALL_HEAD)


def _std(config: TransformerConfig) -> float:
    return (1 / config.width / 3) ** 0.5


def _initialise_layers(part: nn.Module, config: TransformerConfig) -> None:
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=_std(config))
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in part.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            module.out.weight.div_((2 * config.depth) ** 0.5)
        elif isinstance(module, FeedForward):
            module.leave.weight.div_((2 * config.depth) ** 0.5)


def _quieten_modulation(block: Block, config: TransformerConfig) -> None:
    """Gains near 0, scales and shifts halved; rows of the six modulations stand in this order."""
    if config.modulation == "none":
        return
    six = block.modulation.weight.unflatten(0, (6, -1)) if config.has_own_modulation else block.modulation_offset
    six[:2] *= QUIET_GAIN
    six[2:] *= QUIET_SHIFT


@torch.no_grad()
def initialise_head(transformer: StarTransformer, codebook: Tensor, caches: Iterable[Tensor]) -> None:
    """Give codes that lie close together similar rows in the head, so that what is learned of one serves the others.

    Args:
        transformer: whose head is overwritten: the codebook in a random rotation, rows of length 1 in the mean square.
        codebook: (V, Z).
        caches: tokens, each (n, L). Codes that come in none begin with a row of zeros.
    """
    used = torch.zeros(len(codebook), dtype=torch.bool)
    for tokens in caches:
        used[tokens.unique().long()] = True
    rotation = torch.randn(codebook.shape[1], transformer.config.width) / transformer.config.width**0.5
    length = codebook[used].square().sum(1).mean().sqrt()
    transformer.head.weight.copy_(codebook / length @ rotation)
    transformer.head.weight[~used] = 0
