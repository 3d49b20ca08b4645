"""What do other precisions change and gain on a CPU? Tokens, pixels, verdicts, seconds, beside float32.

    python -m benchmarks.precision --prompts 40 --res 256     the shipped model, against float32
    python -m benchmarks.precision --as-on-a-gpu              the same, rounded as on a GPU; its seconds mean nothing
    python -m benchmarks.precision --blocks 16                a call of a random model of that depth, 64 wide a head

Seconds are processor time of one thread, the least of several; nothing needs to be idle but for the caches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.shapes_judge import judge
from benchmarks.shapes_prompts import prompts
from star_cli.generated import GeneratedImage
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.sampler import draw
from star_cli.memory import keep_pages
from star_cli.models.condition import TextCondition
from star_cli.models.config import TransformerConfig, VQVAEConfig
from star_cli.models.quantizer import MultiScaleQuantizer
from star_cli.models.rounding import ROUNDINGS, round_blocks, rounded_layers
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.torchao_weights import round_by_torchao
from star_cli.models.transformer import StarTransformer
from star_cli.pipeline import StarPipeline

MODES = {"float32": ("float32", None), "bfloat16": ("bfloat16", None), "int8": ("float32", "int8")}
ON_A_GPU = {"float32": ("float32", None), **{name: ("bfloat16", name) for name in ROUNDINGS}}
"""The same arithmetic as there, but for how sums are added up."""
SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Of the published models at 256 px."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--res", type=int, default=256)
    parser.add_argument("--blocks", type=int, help="time a random model of this depth instead")
    parser.add_argument("--as-on-a-gpu", action="store_true", help="round the blocks as a GPU does; needs torchao")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_pages()
    if options.blocks:
        _time_random(options.blocks)
    else:
        _compare(options.prompts, options.res, options.as_on_a_gpu)


def _compare(count: int, res: int, as_on_a_gpu: bool) -> None:
    # half of them show one thing, half two
    chosen = (prompts()[: count - count // 2] + prompts()[-(count // 2) :]) if count > 1 else prompts()[:1]
    texts = [text for text, _ in chosen]
    usual: list[GeneratedImage] = []
    print("| precision | s a picture | tokens as in float32, % | same pictures, % | PSNR, dB | right, % |")
    print("|---|---|---|---|---|---|")
    for name, (dtype, quantize) in (ON_A_GPU if as_on_a_gpu else MODES).items():
        usual_rounding = None if as_on_a_gpu else quantize
        pipe = StarPipeline.from_pretrained("star-shapes", device="cpu", dtype=dtype, quantize=usual_rounding)
        if as_on_a_gpu and quantize:
            _round_as_on_a_gpu(pipe.transformer, quantize)
        pipe.max_batch = 1
        seconds, images = [], []
        for text in texts:
            started = time.process_time()
            images += pipe(text, res=res)
            seconds.append(time.process_time() - started)
        usual = usual or images
        verdicts = [(scene, judge(image.to_pil(), scene)) for image, (_, scene) in zip(images, chosen, strict=True)]
        right = 100 * sum(verdict.all_ok for _, verdict in verdicts) / len(verdicts)
        same = 100 * sum(torch.equal(a.pixels, b.pixels) for a, b in zip(images, usual, strict=True)) / len(images)
        print(
            f"| {name} | {min(seconds):.2f} | {_agreement(images, usual):.1f} | {same:.0f} "
            f"| {_psnr(images, usual):.1f} | {right:.0f} |",
            flush=True,
        )


def _round_as_on_a_gpu(transformer: StarTransformer, rounding: str) -> None:
    from torchao.quantization import quant_api

    quant_api._check_hardware_support = lambda granularity: None  # torch multiplies fp8 on a CPU, too
    for layer in rounded_layers(transformer):
        round_by_torchao(layer, rounding)


def _agreement(images: Sequence[GeneratedImage], usual: Sequence[GeneratedImage]) -> float:
    pairs = [
        (own, other)
        for image, like in zip(images, usual, strict=True)
        for own, other in zip(image.token_maps, like.token_maps, strict=True)
    ]
    return 100 * sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def _psnr(images: Sequence[GeneratedImage], usual: Sequence[GeneratedImage]) -> float:
    """Of all pixels together."""
    errors = [(a.pixels.float() - b.pixels.float()).square().mean() for a, b in zip(images, usual, strict=True)]
    return float(10 * torch.log10(255**2 / torch.stack(errors).mean()))


@torch.inference_mode()
def _time_random(blocks: int) -> None:
    """One guided picture of 256 px: transformer and scale loop, without text encoder and decoder."""
    width = 64 * blocks
    config = TransformerConfig(depth=blocks, width=width, heads=blocks, text_width=1024, levels=len(SIDES_256))
    schedule = ScaleSchedule(SIDES_256)
    quantizer = MultiScaleQuantizer(VQVAEConfig())
    states = torch.randn(1, 77, 1024)
    condition = TextCondition(states[:, 0], states, torch.ones(1, 77, dtype=torch.bool))
    options = SamplingOptions(guidance=4.0)
    print("| precision | s a call | weights of the blocks, MB |\n|---|---|---|")
    for name, (dtype, quantize) in MODES.items():
        torch.manual_seed(0)
        transformer = StarTransformer(config).eval()
        transformer.set_compute_dtype(getattr(torch, dtype))
        if quantize:
            round_blocks(transformer, quantize)

        def call(model: StarTransformer = transformer) -> None:
            draw(model, quantizer, condition, condition, schedule, options, random_generators([0]))

        megabytes = sum(tensor.nbytes for tensor in transformer.blocks.state_dict().values()) / 1e6
        print(f"| {name} | {_least(call):.2f} | {megabytes:.0f} |", flush=True)


def _least(call: Callable[[], None], repeats: int = 3) -> float:
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return min(taken)


if __name__ == "__main__":
    main()
