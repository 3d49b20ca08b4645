"""The VQVAE equals the published one."""

import json

import pytest
import torch
import torch.nn.functional as F

from star_cli.models.quantizer import choose_phi
from tests.reference.golden import COPIED, FULL, Golden, build_quantizer, build_vqvae, golden, schedule_of

CASES = ["vqvae_share4", "vqvae_share1", "vqvae_share0", "vqvae_share4_ten_scales"]
LATENT, IMAGE, LOSS = 2e-5, 5e-5, 1e-5
FEATURE = 3e-5


def test_phi_of_each_scale_is_the_published_one():
    path = next(folder / "phi_selection.json" for folder in (FULL, COPIED) if (folder / "phi_selection.json").is_file())
    for case in json.loads(path.read_text())["cases"]:
        chosen = [choose_phi(scale, case["S"], case["K"]) for scale in range(case["S"])]
        assert chosen == case["index_per_scale"], case


@pytest.mark.parametrize("name", CASES)
def test_quantiser_gives_the_published_tokens_and_reconstructions(name: str):
    case = golden(name)
    schedule, quantizer = schedule_of(case), build_quantizer(case, "state/")
    token_maps = []
    with torch.no_grad():
        for scale, (tokens, f_hat) in enumerate(quantizer.encode_scales(case["out/f"], schedule)):
            case.compare(f"idx/{scale}", tokens, 0)
            case.compare(f"fhat/{scale}", f_hat, LATENT)
            token_maps.append(tokens)
        case.compare("var_input", quantizer.teacher_input(token_maps, schedule), LATENT)
        for scale, f_hat in enumerate(quantizer.decode_scales(token_maps, schedule)):
            case.compare(f"ar_fhat/{scale}", f_hat, LATENT)
            if scale + 1 < len(schedule):
                side = schedule.sides[scale + 1]
                following = quantizer.next_input(f_hat, side).transpose(1, 2).unflatten(2, (side, side))
                case.compare(f"ar_next/{scale}", following, LATENT)


@pytest.mark.parametrize("name", CASES)
def test_whole_tokenizer_equals_the_published_one(name: str):
    case = golden(name)
    schedule, model = schedule_of(case), build_vqvae(case, "state/")
    with torch.no_grad():
        case.compare("f", model.encode(case["in/img"]), FEATURE)
        token_maps = model.tokenize(case["in/img"], schedule)
        for scale, tokens in enumerate(token_maps):
            case.compare(f"idx/{scale}", tokens, 0)
        *_, f_hat = model.quantizer.decode_scales(token_maps, schedule)
        case.compare("rec", model.decode(f_hat), IMAGE)
        if "out/rec_unclamped" in case:
            case.compare("rec_unclamped", model.reconstruct(f_hat), IMAGE)


def vq_loss(case: Golden, quantizer: torch.nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """The published quantisation loss, summed over scales, written out independently of the trainer."""
    total = latent.new_zeros(())
    for _, f_hat in quantizer.encode_scales(latent, schedule_of(case)):
        total = total + 0.25 * F.mse_loss(f_hat.detach(), latent) + F.mse_loss(f_hat, latent.detach())
    return total


@pytest.mark.parametrize("name", CASES)
def test_quantisation_loss_and_its_gradients(name: str):
    case = golden(name)
    if "out/loss_t2i" not in case:
        pytest.skip("no loss recorded")
    quantizer = build_quantizer(case, "state/")
    loss = vq_loss(case, quantizer, case["out/f"])
    case.compare("loss_t2i", loss.reshape(case["out/loss_t2i"].shape), LOSS)
    loss.backward()
    if "out/grad_vq_t2i/quantize.embedding.weight" in case:
        case.compare("grad_vq_t2i/quantize.embedding.weight", quantizer.codebook.weight.grad, 2e-5, 1e-4)
