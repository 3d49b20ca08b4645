"""Where the golden tensors come from, and how a model is built from one."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from star_cli.checkpoints import layouts
from star_cli.models.condition import TextCondition
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE

COPIED = Path(__file__).parent / "golden"
FULL = Path(os.environ.get("STAR_REFERENCE", Path(__file__).parents[3] / "shared" / "reference")) / "golden"

deviations: dict[str, float] = {}
"""Largest absolute deviation of each case and quantity; printed at the end of the run."""


def available(name: str) -> Path | None:
    """The golden's safetensors file: from the full set when it is there, else from the copies in this repository."""
    for folder in (FULL, COPIED):
        if (folder / f"{name}.safetensors").is_file():
            return folder / f"{name}.safetensors"
    return None


@dataclass
class Golden:
    """One case: tensors, hyper-parameters, and comparison that remembers the largest deviation."""

    name: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    checked: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def state(self, prefix: str) -> dict[str, Tensor]:
        """Official state dict stored under a prefix."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def compare(self, key: str, ours: Tensor, tolerance: float, relative: float = 0.0) -> None:
        """Ours against `out/<key>`: within the tolerance that the reference states; its shape must be the same."""
        expected = self.tensors[f"out/{key}"]
        ours = ours.detach()
        if expected.dtype in (torch.int64, torch.uint8, torch.bool):
            assert torch.equal(ours.to(expected.dtype), expected), f"{self.name}: {key} differs"
            deviation = 0.0
        else:
            assert ours.shape == expected.shape, f"{self.name}: {key} is {tuple(ours.shape)}, not {tuple(expected.shape)}"
            difference = (ours - expected).abs()
            deviation = difference.max().item()
            allowed = tolerance + relative * expected.abs()
            assert bool((difference <= allowed).all()), f"{self.name}: {key} is off by {deviation:.2e}"
        label = f"{self.name} {'/'.join(part for part in key.split('/') if not part.isdigit())}"
        deviations[label] = max(deviations.get(label, 0.0), deviation)


def golden(name: str) -> Golden:
    """Read one case, or skip the test where only the copied cases are there."""
    path = available(name)
    if path is None:
        pytest.skip(f"golden case {name} is not here")
    tensors = {key: value.float() if value.dtype == torch.float16 else value for key, value in load_file(path).items()}
    return Golden(name, tensors, json.loads(path.with_suffix(".json").read_text()))


def schedule_of(case: Golden) -> ScaleSchedule:
    """The schedule a case was made with."""
    values = case.facts["hyperparameters"]
    return ScaleSchedule(tuple(values.get("patch_nums") or values["v_patch_nums"]))


def vqvae_config(values: dict[str, Any]) -> VQVAEConfig:
    """Our config for official hyper-parameters of a tokenizer (or the tokenizer part of a transformer case)."""
    return VQVAEConfig(
        codebook_size=values["vocab_size"],
        code_dim=values.get("z_channels") or values["Cvae"],
        channels=values.get("ch") or values["vae_ch"],
        phi_count=values["share_quant_resi"],
        phi_scales=0 if values["share_quant_resi"] else len(values.get("v_patch_nums") or values["patch_nums"]),
    )


def build_quantizer(case: Golden, prefix: str) -> MultiScaleQuantizer:
    """The quantiser of a case, from its own tensors."""
    quantizer = MultiScaleQuantizer(vqvae_config(case.facts["hyperparameters"]))
    state = layouts.from_official(case.state(prefix), layouts.VQVAE)
    own = {key.removeprefix("quantizer."): value for key, value in state.items() if key.startswith("quantizer.")}
    quantizer.load_state_dict(own, strict=True)
    return quantizer.eval()


def build_vqvae(case: Golden, prefix: str) -> MultiScaleVQVAE:
    """The whole tokenizer: shared encoder and decoder, the case's own quantiser."""
    model = MultiScaleVQVAE(vqvae_config(case.facts["hyperparameters"]))
    state = golden("vae_base").state("state/") | case.state(prefix)
    model.load_state_dict(layouts.from_official(state, layouts.VQVAE), strict=True)
    return model.eval()


def transformer_config(values: dict[str, Any], **changes: Any) -> TransformerConfig:
    """Our config for official hyper-parameters of a STAR model."""
    fields: dict[str, Any] = {
        "depth": values["depth"],
        "width": values["width"],
        "heads": values["heads"],
        "mlp_ratio": values["mlp_ratio"],
        "norm_eps": values["norm_eps"],
        "codebook_size": values["vocab_size"],
        "code_dim": values["Cvae"],
        "levels": len(values["patch_nums"]),
        "text_width": values["in_dim_cross"],
        "cross_attention": values["enable_cross"],
        "position": "rope" if values["rotary_pos_emb"] else "learned",
        "learned_positions": 0 if values["rotary_pos_emb"] else values["L"],
        "rope_theta": values["rope_theta"],
        "rope_norm": values["rope_norm"],
        "level_in_input": values["absolute_lvl_emb"],
        "l2_norm": values["attn_l2_norm"],
        "modulation": "level" if values["shared_aln"] else "none",
        "logit_norm": values["enable_logit_norm"],
    }
    return TransformerConfig(**(fields | changes))


def build_transformer(case: Golden, **changes: Any) -> StarTransformer:
    """The STAR transformer of a case."""
    model = StarTransformer(transformer_config(case.facts["hyperparameters"], **changes))
    model.load_state_dict(layouts.from_official(case.state("state/"), layouts.TRANSFORMER), strict=True)
    return model.eval()


def text_of(case: Golden, rows: list[int] | slice = slice(None)) -> TextCondition:
    """Text features of some rows of a case."""
    return TextCondition(case["in/text_pooled"][rows], case["in/text_hidden"][rows], case["in/text_mask"][rows].bool())
