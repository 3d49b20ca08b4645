"""Key layouts: every key of every published configuration has its place, and the way there leads back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from star_cli.checkpoints import layouts
from star_cli.checkpoints.published import PUBLISHED
from star_cli.checkpoints.tensors import outline_of
from star_cli.checkpoints.translate import official_places, to_official
from star_cli.errors import ModelFolderError
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule
from tests.checkpoints.official_files import SCHEDULE, TINY_STAR, TINY_VAR, official_state, random_like
from tests.reference.golden import class_transformer_config, transformer_config

FULL = Path(os.environ.get("STAR_REFERENCE") or Path(__file__).parents[3] / "shared" / "reference") / "layouts"
LISTED = {
    "star-256-d16": "star_256_d16_clip",
    "star-256": "star_256_d30",
    "star-512": "star_512_d30",
    "star-1024": "star_1024_d30",
    "star-1024-stable": "star_1024_sampler_d30",
    "star-256-d16-t5": "star_256_d16_t5",
    "var-d16": "var_d16",
    "var-d20": "var_d20",
    "var-d24": "var_d24",
    "var-d30": "var_d30",
    "var-d36-s": "var_d36_s_512",
}
ABLATIONS = ["star_256_d16_abs_pos", "star_256_d16_no_cross", "star_256_sampler_d30"]
VQVAES = {"vqvae_ch160v4096z32_256": 256, "vqvae_ch160v4096z32_512": 512, "vqvae_ch160v4096z32_1024": 1024}

Config = TransformerConfig | VQVAEConfig


def read(name: str) -> dict[str, Any]:
    path = FULL / f"{name}.json"
    if not path.is_file():
        pytest.skip("the layouts are in the full reference set alone, and that is not here (see STAR_REFERENCE)")
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def config_of(name: str) -> tuple[Config, ScaleSchedule]:
    """Our config, from hyper-parameters alone: not from the table of published models, which is held against it."""
    values = read(name)["hyperparameters"]
    sides = values.get("patch_nums") or values["v_patch_nums"]
    if name.startswith("vqvae"):
        return VQVAEConfig(
            codebook_size=values["vocab_size"],
            code_dim=values["Cvae"],
            channels=values["ch"],
            multipliers=tuple(values["ch_mult"]),
            blocks=values["num_res_blocks"],
            groups=values["groupnorm_groups"],
            phi_count=values["share_quant_resi"],
            phi_ratio=values["quant_resi"],
        ), ScaleSchedule(tuple(sides))
    if name.startswith("var"):
        return class_transformer_config(values), ScaleSchedule(tuple(sides))
    config = transformer_config(values, classes=values["num_classes"], cross_attention_rows="conditional")
    return config, ScaleSchedule(tuple(sides))


def shrunk(config: Config) -> Config:
    """The same keys at a sixteenth (the VQVAE: a twentieth) of the widths."""
    if isinstance(config, VQVAEConfig):
        return replace(config, codebook_size=64, channels=config.channels // 20, groups=4)
    sixteenth = {name: getattr(config, name) // 16 for name in ("width", "text_width", "codebook_size")}
    return replace(config, **sixteenth)


@pytest.mark.parametrize("name", [*LISTED.values(), *ABLATIONS, *VQVAES])
def test_every_key_of_a_published_configuration_has_its_place(name: str) -> None:
    config, schedule = config_of(name)
    expected = {key: tuple(shape) for key, shape, _ in read(name)["layout"]}
    places = official_places(config, schedule)
    assert {key: place.shape for key, place in places.items()} == expected
    whole = {key for key, _, dtype in read(name)["layout"] if dtype == "int64"}
    assert {
        key for key, place in places.items() if place.refill is not None and place.refill.dtype == torch.int64
    } == whole


@pytest.mark.parametrize("name", [*LISTED.values(), *ABLATIONS, *VQVAES])
def test_each_tensor_of_ours_comes_from_one_key_and_each_left_out_key_says_why(name: str) -> None:
    places = official_places(*config_of(name))
    ours = [place.ours for place in places.values() if place.ours is not None]
    assert sorted(ours) == sorted(outline_of(config_of(name)[0]))
    assert all(place.row.why and place.refill is not None for place in places.values() if place.ours is None)


@pytest.mark.parametrize("name", [*LISTED.values(), *ABLATIONS, *VQVAES])
def test_official_weights_come_back_as_they_were(name: str) -> None:
    config, schedule = config_of(name)
    config = shrunk(config)
    state = official_state(config, schedule)
    kept = {key: state[key] for key, place in official_places(config, schedule).items() if place.row.kept}
    ours = layouts.from_official(state, layouts.layout_of(config))
    like = outline_of(config)
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in like.items()}
    back = to_official(ours, config, schedule, kept)
    assert list(back) == list(official_places(config, schedule))
    assert set(back) == set(state)
    assert [key for key in state if not torch.equal(back[key], state[key])] == []


@pytest.mark.parametrize("name", [*LISTED.values(), *ABLATIONS, *VQVAES])
def test_our_weights_come_back_as_they_were(name: str) -> None:
    config, schedule = config_of(name)
    config = shrunk(config)
    ours = random_like({key: tuple(like.shape) for key, like in outline_of(config).items()})
    back = layouts.from_official(to_official(ours, config, schedule), layouts.layout_of(config))
    assert set(back) == set(ours)
    assert [key for key in ours if not torch.equal(back[key], ours[key])] == []


@pytest.mark.parametrize("name", LISTED)
def test_table_of_published_models_says_what_the_configurations_say(name: str) -> None:
    config, schedule = config_of(LISTED[name])
    model = PUBLISHED[name]
    assert (model.transformer, model.schedule) == (config, schedule)
    assert model.vqvae == config_of(f"vqvae_ch160v4096z32_{model.resolution}")[0]


def test_every_published_model_is_held_against_a_configuration() -> None:
    assert set(PUBLISHED) == set(LISTED)


@pytest.mark.parametrize("phi_count", [0, 1, 2, 4])
def test_phi_is_called_as_the_official_code_calls_it(phi_count: int) -> None:
    config = VQVAEConfig(
        codebook_size=8, code_dim=4, channels=4, multipliers=(1,), groups=4, phi_count=phi_count, phi_scales=3
    )
    keys = [key for key in official_places(config, SCHEDULE) if "quant_resi" in key and key.endswith("weight")]
    named = {0: "quantize.quant_resi.{}", 1: "quantize.quant_resi.qresi"}.get(
        phi_count, "quantize.quant_resi.qresi_ls.{}"
    )
    assert keys == [f"{named.format(index)}.weight" for index in range(phi_count or 3)]


def test_left_out_tensors_are_put_back_as_the_official_code_makes_them() -> None:
    state = to_official(_zeros(TINY_VAR.transformer), TINY_VAR.transformer, SCHEDULE)
    assert state["lvl_1L"].tolist() == [[0] + [1] * 4 + [2] * 16]
    mask = state["attn_bias_for_masking"]
    assert mask.shape == (1, 1, 21, 21)
    assert mask[0, 0, 0].isneginf().tolist() == [False] + [True] * 20
    assert mask[0, 0, 3].isneginf().tolist() == [False] * 5 + [True] * 16
    assert not mask[0, 0, 20].any()
    star = to_official(_zeros(TINY_STAR.transformer), TINY_STAR.transformer, SCHEDULE)
    assert star["class_emb.weight"].shape == (1001, 16)
    assert {key for key in star if key.endswith("zero_k_bias")} == {
        f"blocks.{index}.{kind}.zero_k_bias" for index in range(2) for kind in ("attn", "cross_attn")
    }


def test_key_that_no_row_knows_is_named() -> None:
    with pytest.raises(ModelFolderError, match="keys of no known layout: ema_var"):
        layouts.from_official({"ema_var": torch.zeros(1)}, layouts.STAR)


def _zeros(config: Config) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(like.shape) for key, like in outline_of(config).items()}
