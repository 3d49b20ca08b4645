"""What moves the weights: AdamW, Muon for the matrices inside the blocks, and the course of their rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from star_cli.training.config import LoopConfig
from star_cli.training.stage import Stage


def learning_rate_at(step: int, config: LoopConfig) -> float:
    """Warm-up, then decay."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.decay == "none":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.decay == "cosine" else 1 - done
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * left)


def make_optimizers(stage: Stage, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, and before it Muon where the configuration gives the hidden matrices a rate of their own.

    AdamW decays matrices and convolutions, not gains, biases, single vectors and what the stage leaves out. Muon
    (Jordan et al. 2024) makes each step of a matrix nearly orthogonal, scaled to the rms of an AdamW step (Liu et al.
    2025, section 2.2).

    An opponent has an AdamW of its own, the last one, with the decays that VQGAN's discriminator is trained with.
    """
    learned = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    hidden = [matrix for matrix in stage.hidden_matrices() if matrix.requires_grad]
    hidden = hidden if config.matrix_learning_rate else []
    against = opponent_parameters(stage)
    taken = {id(parameter) for parameter in [*hidden, *against]}
    rest = [parameter for parameter in learned if id(parameter) not in taken]
    spared = {id(parameter) for parameter in [*stage.undecayed(), *(p for p in rest if p.ndim <= 1)]}
    groups = [
        {"params": [p for p in rest if id(p) not in spared], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if id(p) in spared], "weight_decay": 0.0},
    ]
    on_gpu = any(parameter.is_cuda for parameter in rest)
    betas = (config.beta1, config.beta2)
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True if on_gpu else None)
    optimizers: list[torch.optim.Optimizer] = [adamw]
    if hidden:
        rate, decay = config.matrix_learning_rate, config.weight_decay
        optimizers.insert(0, torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    if against:
        optimizers.append(torch.optim.AdamW(against, lr=stage.opponent_rate, betas=(0.5, 0.9), weight_decay=0.0))
    return optimizers


def linear_weights(module: nn.Module) -> list[nn.Parameter]:
    """Weights of all linear layers inside."""
    found = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    return [parameter for parameter in module.parameters() if id(parameter) in found]


def places_and_offsets(module: nn.Module) -> list[nn.Parameter]:
    """What tells a transformer where a token is, and the modulation offsets of its blocks."""
    names = ("start_position", "position_embedding", "level_embedding.weight", "modulation_offset")
    return [parameter for name, parameter in module.named_parameters() if name.endswith(names)]


def opponent_parameters(stage: Stage) -> list[nn.Parameter]:
    """What the opponent learns; empty without one."""
    opponent = stage.opponent()
    return [] if opponent is None else [parameter for parameter in opponent.parameters() if parameter.requires_grad]


def set_rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Every optimiser at this share of its own full rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]
