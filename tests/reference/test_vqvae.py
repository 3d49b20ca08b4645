"""The VQVAE equals the published one: tokens, latents, images, losses and gradients."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.checkpoints import layouts
from star_cli.models.quantizer import MultiScaleQuantizer, choose_phi
from star_cli.training.quantization import quantize
from tests.reference.golden import (
    Golden,
    build_quantizer,
    build_vqvae,
    compare_gradients,
    find,
    golden,
    schedule_of,
    uncovered,
)

CASES = ["vqvae_share4", "vqvae_share1", "vqvae_share0", "vqvae_share4_ten_scales"]
QUANTIZER = ("idx", "fhat", "ar_fhat", "ar_next", "var_input")
NETWORK = ("f", "rec", "rec_unclamped")
LOSSES = ("loss_t2i", "loss_c2i", "st_fhat")
GRADIENTS = ("grad_vq_t2i", "grad_vq_c2i", "total_c2i", "grad_total_c2i")
LEFT_OUT = ("usages_percent",)  # a statistic of the published trainer's own counters: nothing of ours computes it


def test_phi_of_each_scale_is_the_published_one() -> None:
    path = find("phi_selection.json")
    assert path is not None
    table = json.loads(path.read_text())["table"]
    assert len(table) > 0
    for row in table:
        scales, count = row["number_of_scales"], row["number_of_phi"]
        assert [choose_phi(scale, scales, count) for scale in range(scales)] == row["index_per_scale"], row


@pytest.mark.parametrize("name", CASES)
def test_phi_of_each_scale_is_that_of_the_case(name: str) -> None:
    case = golden(name)
    schedule, quantizer = schedule_of(case), build_quantizer(case, "state/")
    used = [choose_phi(scale, len(schedule), len(quantizer.phi)) for scale in range(len(schedule))]
    assert used == case.facts["phi_index_per_scale"]


@pytest.mark.parametrize("name", CASES)
def test_quantiser_gives_the_published_tokens_and_reconstructions(name: str) -> None:
    case = golden(name)
    schedule, quantizer = schedule_of(case), build_quantizer(case, "state/")
    token_maps = []
    with torch.no_grad():
        for scale, (tokens, f_hat) in enumerate(quantizer.encode_scales(case["out/f"], schedule)):
            case.compare(f"idx/{scale}", tokens, "tokens")
            case.compare(f"fhat/{scale}", f_hat, "latent")
            token_maps.append(tokens)
        case.compare("var_input", quantizer.teacher_input(token_maps, schedule), "latent")
        for scale, f_hat in enumerate(quantizer.decode_scales(token_maps, schedule)):
            case.compare(f"ar_fhat/{scale}", f_hat, "latent")
            side = schedule.sides[min(scale + 1, len(schedule) - 1)]  # after the last scale: the full latent
            following = quantizer.next_input(f_hat, side).transpose(1, 2).unflatten(2, (side, side))
            case.compare(f"ar_next/{scale}", following, "latent")
    case.finish(*QUANTIZER)


@pytest.mark.parametrize("name", CASES)
def test_whole_tokenizer_equals_the_published_one(name: str) -> None:
    case = golden(name)
    schedule, model = schedule_of(case), build_vqvae(case, "state/")
    with torch.no_grad():
        case.compare("f", model.encode(case["in/img"]), "feature")
        token_maps = model.tokenize(case["in/img"], schedule)
        for scale, tokens in enumerate(token_maps):
            case.compare(f"idx/{scale}", tokens, "tokens")
        *_, f_hat = model.quantizer.decode_scales(token_maps, schedule)
        case.compare("rec", model.decode(f_hat), "image")
        case.compare("rec_unclamped", model.reconstruct(f_hat), "image")
    case.finish("idx", *NETWORK)


def losses(case: Golden, quantizer: MultiScaleQuantizer, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the trainer computes.

    Returns:
        The text-to-image loss, summed over scales; the class-conditional one, their mean; the straight-through latent.
    """
    summed = quantize(quantizer, latent, schedule_of(case), 0.25, "sum")
    mean = quantize(quantizer, latent, schedule_of(case), 0.25, "mean")
    return summed.loss, mean.loss, mean.latent


@pytest.mark.parametrize("name", CASES)
def test_quantisation_losses_and_the_gradients_of_the_quantiser(name: str) -> None:
    case = golden(name)
    quantizer = build_quantizer(case, "state/")
    summed, mean, straight_through = losses(case, quantizer, case["out/f"])
    case.compare("loss_t2i", summed[None], "loss")
    case.compare("loss_c2i", mean[None], "loss")
    case.compare("st_fhat", straight_through, "latent")
    for under, loss in (("grad_vq_t2i", summed), ("grad_vq_c2i", mean)):
        quantizer.zero_grad()
        loss.backward(retain_graph=True)
        compare_gradients(case, under, quantizer, layouts.VQVAE, "quantizer.")
    gradients = [key for key in case.recorded("grad_vq_t2i", "grad_vq_c2i") if "/quantize." in key]
    assert gradients
    case.finish(*LOSSES, *gradients)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_through_the_whole_tokenizer(name: str) -> None:
    case = golden(name)
    model = build_vqvae(case, "state/")
    summed, mean, straight_through = losses(case, model.quantizer, model.encode(case["in/img"]))
    case.compare("st_fhat", straight_through, "latent")
    wanted = {"grad_vq_t2i": summed, "grad_vq_c2i": mean}
    if case.recorded("total_c2i"):
        wanted["grad_total_c2i"] = mean + F.mse_loss(model.reconstruct(straight_through), case["in/img"])
        case.compare("total_c2i", wanted["grad_total_c2i"][None], "loss")
    for under, loss in wanted.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        compare_gradients(case, under, model, layouts.VQVAE)
    case.finish(*GRADIENTS)


@pytest.mark.parametrize("name", CASES)
def test_no_recorded_output_of_a_tokenizer_is_left_uncompared(name: str) -> None:
    assert uncovered(golden(name), *QUANTIZER, *NETWORK, *LOSSES, *GRADIENTS, *LEFT_OUT) == []
