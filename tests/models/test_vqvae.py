from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from star_cli.errors import ShapeError
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.vqvae import Double, Halve, PixelAttention, ResidualBlock
from tests.models.builders import CODE_DIM, TINY_VQVAE, lively, tiny_vqvae


def image_of(rows: int, side: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("sides", [(1, 2, 4), (1, 2, 4, 8)], ids=["small", "large"])
def test_one_tokenizer_serves_several_resolutions(patch: int, sides: tuple[int, ...]) -> None:
    schedule, model = ScaleSchedule(sides), tiny_vqvae(patch=patch)
    pixels = model.config.factor * schedule.last_side
    assert model.config.factor == 2 * patch
    with torch.no_grad():
        image = image_of(2, pixels)
        assert model.encode(image).shape == (2, CODE_DIM, schedule.last_side, schedule.last_side)
        token_maps = model.tokenize(image, schedule)
        assert [tokens.shape for tokens in token_maps] == [(2, side * side) for side in sides]
        *_, f_hat = model.quantizer.decode_scales(token_maps, schedule)
        drawn = model.decode(f_hat)
    assert drawn.shape == image.shape
    assert drawn.dtype == torch.float32
    assert drawn.abs().max() <= 1


def test_published_shape_halves_four_times() -> None:
    model = tiny_vqvae(channels=4, multipliers=(1, 1, 2, 2, 4), blocks=2, groups=4)
    with torch.no_grad():
        latent = model.encode(image_of(1, 64))
        assert latent.shape == (1, CODE_DIM, 4, 4)
        assert model.decode(latent).shape == (1, 3, 64, 64)


def test_decoding_clamps_what_reconstruction_leaves_free() -> None:
    model, f_hat = tiny_vqvae(), 5 * torch.randn(1, CODE_DIM, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        free, clamped = model.reconstruct(f_hat), model.decode(f_hat)
    assert free.abs().max() > 1
    assert torch.equal(clamped, free.clamp(-1, 1))


def test_each_image_is_coded_as_if_alone() -> None:
    model, images, schedule = tiny_vqvae(patch=2), image_of(4, 16), ScaleSchedule((1, 2, 4))
    with torch.no_grad():
        together = model.tokenize(images, schedule)
        for image in range(4):
            alone = model.tokenize(images[image : image + 1], schedule)
            assert all(torch.equal(many[image], one[0]) for many, one in zip(together, alone, strict=True))


def test_image_sides_that_are_no_multiple_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"image sides must be multiples of 2, not \(7, 7\)"):
        tiny_vqvae().encode(image_of(1, 7))


def test_gradients_reach_every_parameter() -> None:
    model, schedule = tiny_vqvae(phi_count=1), ScaleSchedule((1, 2, 4))
    image = image_of(2, 8)
    latent = model.encode(image)
    *_, (_, f_hat) = model.quantizer.encode_scales(latent, schedule)
    straight_through = latent + (f_hat - latent).detach()
    loss = (model.reconstruct(straight_through) - image).square().mean() + (f_hat - latent.detach()).square().mean()
    loss.backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_bfloat16_network_keeps_a_float32_quantiser() -> None:
    model, image = tiny_vqvae(), image_of(1, 8)
    with torch.no_grad():
        exact = model.encode(image)
        model.set_compute_dtype(torch.bfloat16)
        latent = model.encode(image)
        assert model.decode(latent).dtype == torch.float32
    assert latent.dtype == model.quantizer.codebook.weight.dtype == torch.float32
    assert model.encoder.stem.weight.dtype == torch.bfloat16
    torch.testing.assert_close(latent, exact, rtol=0.1, atol=0.1)


def convolved(x: Tensor, conv: torch.nn.Conv2d, stride: int, above: int, below: int) -> Tensor:
    """A 3x3 convolution by loops in float64, with rows and columns of zeros added before and after."""
    rows, width = x.shape[-1] + above + below, x.shape[1]
    padded = torch.zeros(len(x), width, rows, rows, dtype=torch.float64)
    padded[:, :, above : rows - below, above : rows - below] = x
    cells = range(0, rows - 2, stride)
    patches = [[padded[:, :, y : y + 3, z : z + 3] for z in cells] for y in cells]
    weight, bias = conv.weight.double(), conv.bias.double() if conv.bias is not None else 0
    lines = [torch.stack([torch.einsum("ocij,bcij->bo", weight, p) + bias for p in line], dim=-1) for line in patches]
    return torch.stack(lines, dim=-2)


def test_halving_pads_right_and_below_only() -> None:
    layer, x = lively(Halve(4)), torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x).double(), convolved(x.double(), layer.conv, 2, 0, 1), rtol=0, atol=1e-5)


def test_doubling_repeats_each_cell_then_smooths() -> None:
    layer, x = lively(Double(4)), torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    doubled = x.double().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(layer(x).double(), convolved(doubled, layer.conv, 1, 1, 1), rtol=0, atol=1e-5)


def normed(x: Tensor, norm: torch.nn.GroupNorm) -> Tensor:
    """Group normalisation by its formula, float64, eps 1e-6."""
    groups = x.double().unflatten(1, (norm.num_groups, -1))
    mean = groups.mean((2, 3, 4), keepdim=True)
    variance = (groups - mean).square().mean((2, 3, 4), keepdim=True)
    plain = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
    return plain * norm.weight.double()[:, None, None] + norm.bias.double()[:, None, None]


@pytest.mark.parametrize("leaving", [8, 4])
def test_residual_block_adds_two_smoothed_activations_to_its_shortcut(leaving: int) -> None:
    layer = lively(ResidualBlock(8, leaving, TINY_VQVAE))
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))

    def silu(values: Tensor) -> Tensor:
        return values / (1 + torch.exp(-values))

    h = convolved(silu(normed(x, layer.norm1)), layer.conv1, 1, 1, 1)
    h = convolved(silu(normed(h, layer.norm2)), layer.conv2, 1, 1, 1)
    shortcut = x.double()
    if isinstance(layer.shortcut, torch.nn.Conv2d):
        assert layer.shortcut.bias is not None
        shortcut = torch.einsum("oc,bcyx->boyx", layer.shortcut.weight[..., 0, 0].double(), shortcut)
        shortcut = shortcut + layer.shortcut.bias.double()[:, None, None]
    assert (leaving == 8) == isinstance(layer.shortcut, torch.nn.Identity)
    torch.testing.assert_close(layer(x).double(), shortcut + h, rtol=0, atol=2e-5)


def test_pixel_attention_is_the_textbook_formula() -> None:
    layer = lively(PixelAttention(8, TINY_VQVAE))
    x = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    assert layer.qkv.bias is not None
    assert layer.out.bias is not None
    cells = normed(x, layer.norm)[0].flatten(1).T  # (9, C)
    q, k, v = (cells @ layer.qkv.weight[..., 0, 0].double().T + layer.qkv.bias.double()).chunk(3, dim=1)
    weights = torch.exp(q @ k.T / math.sqrt(8))
    mixed = (weights / weights.sum(1, keepdim=True)) @ v
    added = mixed @ layer.out.weight[..., 0, 0].double().T + layer.out.bias.double()
    torch.testing.assert_close(layer(x)[0].double(), x[0].double() + added.T.unflatten(1, (3, 3)), rtol=0, atol=2e-5)
