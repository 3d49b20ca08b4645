"""Where the golden tensors come from, how a model is built from one, and the comparison that remembers.

The full set lies beside the repository, or where the environment variable STAR_REFERENCE says. `golden/` holds copies
small enough for the repository, cut by `cut_goldens.py`; with those alone, tests of the other cases are skipped. The
encoder and decoder of the published tokenizer are in no copy (9 MB), so tests of whole pictures need the full set.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from star_cli.checkpoints import layouts
from star_cli.generation.filtering import draw_tokens
from star_cli.generation.sampler import Drawn
from star_cli.models.condition import TextCondition
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE

COPIES = Path(__file__).parent / "golden"
FULL = Path(os.environ.get("STAR_REFERENCE") or Path(__file__).parents[3] / "shared" / "reference") / "golden"

Model = TypeVar("Model", bound=nn.Module)
Kind = Literal[
    "tokens",
    "feature",
    "latent",
    "image",
    "rotary",
    "hidden",
    "logits",
    "guided",
    "probability",
    "sureness",
    "relaxed",
    "copied",
    "loss",
    "gradient",
]
TOLERANCES: dict[Kind, tuple[float, float]] = {  # absolute and relative, from the reference's README
    "tokens": (0, 0),
    "feature": (3e-5, 0),
    "latent": (2e-5, 0),
    "image": (5e-5, 0),
    "rotary": (1e-5, 0),
    "hidden": (2e-4, 0),  # not stated there: as the logits, which are computed from it
    "logits": (2e-4, 0),
    "guided": (5e-4, 0),
    "probability": (1e-6, 0),  # not stated there: a softmax over 64 recorded logits, so a few units in the last place
    "sureness": (5e-5, 0),  # nor this: a softmax over guided logits that may be off by as much as theirs
    "relaxed": (1e-6, 0),  # nor this: as "probability"; the noise is recorded, too
    "copied": (0, 0),
    "loss": (1e-5, 0),
    "gradient": (2e-5, 1e-4),
}

deviations: dict[str, dict[Kind, float]] = {}
"""Largest absolute deviation of each case and kind of quantity in the test that runs; `summary.py` prints all."""


@dataclass
class Golden:
    """One recorded case: its tensors, its facts, and what has been compared with it."""

    name: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    compared: set[str] = field(default_factory=set)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def state(self, prefix: str) -> dict[str, Tensor]:
        """What is stored under a prefix, by the rest of its keys."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def recorded(self, *under: str) -> set[str]:
        """Keys of the outputs that are, or lie under, one of the given names; all when none is given."""
        keys = self.state("out/")
        return {key for key in keys if not under or any(key == name or key.startswith(f"{name}/") for name in under)}

    def compare(self, key: str, ours: Tensor, kind: Kind) -> None:
        """Hold ours against `out/<key>`: the same shape, and within the tolerance of its kind.

        What a case did not record is passed over; `finish` sees to it that nothing recorded is.
        """
        expected = self.tensors.get(f"out/{key}")
        if expected is None:
            return
        ours = ours.detach()
        assert ours.shape == expected.shape, f"{self.name}: {key} is {tuple(ours.shape)}, not {tuple(expected.shape)}"
        assert not (expected.is_floating_point() and kind == "tokens"), f"{self.name}: {key} are no tokens"
        absolute, relative = TOLERANCES[kind]
        difference = (ours.double() - expected.double()).abs()
        deviation = difference.max().item()
        allowed = absolute + relative * expected.double().abs()
        assert bool((difference <= allowed).all()), f"{self.name}: {key} is off by {deviation:.2e}"
        of_case = deviations.setdefault(self.name, {})
        of_case[kind] = max(of_case.get(kind, 0.0), deviation)
        self.compared.add(key)

    def finish(self, *under: str) -> None:
        """Fail when something recorded under these names was not compared, or nothing is recorded there."""
        recorded = self.recorded(*under)
        assert recorded, f"{self.name} records nothing under {under}"
        assert not (left := recorded - self.compared), f"{self.name}: never compared: {sorted(left)}"


def uncovered(case: Golden, *under: str) -> list[str]:
    """Outputs of a case that lie under none of the given names."""
    return sorted(case.recorded() - case.recorded(*under))


def find(filename: str) -> Path | None:
    """A golden file: from the full set when it is there, else from the copies."""
    return next((folder / filename for folder in (FULL, COPIES) if (folder / filename).is_file()), None)


def golden(name: str) -> Golden:
    """Read one case, or skip the test where the case is not at hand."""
    path = find(f"{name}.safetensors")
    if path is None:
        pytest.skip(f"golden case {name} is in the full reference set alone, and that is not here (see STAR_REFERENCE)")
    return Golden(name, *_read(path))


@functools.cache
def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    # the shared encoder and decoder are stored as float16 without loss
    tensors = {key: value.float() if value.dtype == torch.float16 else value for key, value in load_file(path).items()}
    return tensors, json.loads(path.with_suffix(".json").read_text())


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
        phi_ratio=values["quant_resi"],
    )


def build_quantizer(case: Golden, prefix: str) -> MultiScaleQuantizer:
    """The quantiser of a case, from its own tensors."""
    with torch.device("meta"):
        model = MultiScaleQuantizer(vqvae_config(case.facts["hyperparameters"]))
    state = layouts.from_official(case.state(prefix), layouts.VQVAE)
    own = {key.removeprefix("quantizer."): value for key, value in state.items() if key.startswith("quantizer.")}
    return _filled(model, own)


def build_vqvae(case: Golden, prefix: str) -> MultiScaleVQVAE:
    """The whole tokenizer: shared encoder and decoder, the case's own quantiser."""
    with torch.device("meta"):
        model = MultiScaleVQVAE(vqvae_config(case.facts["hyperparameters"]))
    state = golden("vae_base").state("state/") | case.state(prefix)
    return _filled(model, layouts.from_official(state, layouts.VQVAE))


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
    if values.get("enable_adaptive_norm"):
        fields |= {"stable_head": True, "stable_blocks": values["sampler_encoder_depth"]}
        fields |= {"stable_from": values["sample_from_idx"]}
    return TransformerConfig(**(fields | changes))


def build_transformer(case: Golden, **changes: Any) -> StarTransformer:
    """The STAR transformer of a case."""
    if version := case.facts.get("sample_version"):
        changes = {"stable_version": version, **changes}
    with torch.device("meta"):
        model = StarTransformer(transformer_config(case.facts["hyperparameters"], **changes))
    return _filled(model, layouts.from_official(case.state("state/"), layouts.STAR))


def class_transformer_config(values: dict[str, Any]) -> TransformerConfig:
    """Our config for official hyper-parameters of a VAR model."""
    return TransformerConfig(
        depth=values["depth"],
        width=values["width"],
        heads=values["heads"],
        mlp_ratio=values["mlp_ratio"],
        norm_eps=values["norm_eps"],
        codebook_size=values["vocab_size"],
        code_dim=values["Cvae"],
        levels=len(values["patch_nums"]),
        conditioning="class",
        classes=values["num_classes"],
        cross_attention=False,
        position="learned",
        learned_positions=values["L"],
        l2_norm=values["attn_l2_norm"],
        modulation="class_shared" if values["shared_aln"] else "class",
    )


def build_class_transformer(case: Golden) -> StarTransformer:
    """The VAR transformer of a case."""
    with torch.device("meta"):
        model = StarTransformer(class_transformer_config(case.facts["hyperparameters"]))
    return _filled(model, layouts.from_official(case.state("state/"), layouts.VAR))


class Watched:
    """What the head and guidance give, scale by scale, while a model draws."""

    def __init__(self, model: StarTransformer, monkeypatch: pytest.MonkeyPatch):
        self.raw: list[Tensor] = []
        self.guided: list[Tensor] = []
        model.head.register_forward_hook(lambda _module, _given, result: self.raw.append(result))
        monkeypatch.setattr("star_cli.generation.smoothing.draw_tokens", self._draw)

    def _draw(self, logits: Tensor, *rest: Any) -> Tensor:
        self.guided.append(logits)
        return draw_tokens(logits, *rest)

    def compare(self, case: Golden, under: str, drawn: Drawn, quantizer: MultiScaleQuantizer) -> None:
        """Tokens, logits, latents and, where it is recorded, the picture of a drawing."""
        token_maps = [token_map.flatten(1) for token_map in drawn.token_maps]
        with torch.no_grad():
            latents = list(quantizer.decode_scales(token_maps, schedule_of(case)))
        assert torch.equal(drawn.f_hat, latents[-1])
        for scale, f_hat in enumerate(latents):
            case.compare(f"{under}/idx/{scale}", token_maps[scale], "tokens")
            case.compare(f"{under}/raw/{scale}", self.raw[scale], "logits")
            case.compare(f"{under}/logits/{scale}", self.guided[scale], "guided")
            case.compare(f"{under}/fhat/{scale}", f_hat, "latent")
        if case.recorded(f"{under}/img"):
            with torch.no_grad():
                image = build_vqvae(case, "state_vae/").decode(drawn.f_hat)
            case.compare(f"{under}/img", (image + 1) / 2, "image")
        case.finish(under)


def _filled(model: Model, state: dict[str, Tensor]) -> Model:
    # clones: the file is read once for all tests, and gradients must not meet there
    model.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True, assign=True)
    return model.eval()


def text_of(case: Golden, chosen: list[int], under: str = "in") -> TextCondition:
    """Text features of some rows of a case."""
    pooled, states, mask = (case[f"{under}/text_{part}"][chosen] for part in ("pooled", "hidden", "mask"))
    return TextCondition(pooled, states, mask.bool())


def compare_gradients(case: Golden, under: str, model: nn.Module, layout: list[layouts.Row], prefix: str = "") -> None:
    """Hold every gradient recorded under a name against the gradient our parameter of the same place has.

    Args:
        case: the recorded case.
        under: where the gradients are recorded; the rest of the key is the official name of the parameter.
        model: after backward.
        layout: rows that translate the names.
        prefix: what our names begin with in the layout and not in this model; other parameters are passed over.
    """
    parameters = dict(model.named_parameters())
    for key, recorded in case.state(f"out/{under}/").items():
        (ours,) = layouts.from_official({key: recorded}, layout)
        if not ours.startswith(prefix):
            continue
        gradient = parameters[ours.removeprefix(prefix)].grad
        assert gradient is not None, f"{ours} has no gradient"
        case.compare(f"{under}/{key}", gradient.reshape(recorded.shape), "gradient")
