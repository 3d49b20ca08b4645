"""How well a model's VQVAE gives unseen scenes back: PSNR, SSIM, and the share of its codes that they use.

    python -m benchmarks.reconstruction --model star-icons --mix grounds --objects 100 --scenes 512

The share grows with the number of scenes: a code that no scene of a set needs is not yet a dead one.
"""

from __future__ import annotations

import argparse

import torch

from star_cli.checkpoints.known import find_model
from star_cli.data.icons.scenes import HELD_OUT_SEED, MIXES
from star_cli.data.icons.source import IconScenes
from star_cli.evaluation.reconstruction import evaluate_reconstruction
from star_cli.memory import keep_pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="star-icons", help="name or folder")
    parser.add_argument("--mix", default="grounds", choices=MIXES)
    parser.add_argument("--objects", type=int, default=100)
    parser.add_argument("--scenes", type=int, default=512, help="all with held-out pairs")
    parser.add_argument("--res", type=int, nargs="*", help="default: all that the model knows")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_pages()
    folder = find_model(options.model)
    vqvae = folder.load_vqvae(dtype=torch.float32).eval()
    scenes = IconScenes.open(options.scenes, HELD_OUT_SEED, options.mix, options.objects)
    print("| px | scenes | PSNR, dB | SSIM | codes used, % | by side |\n|---|---|---|---|---|---|")
    for resolution in options.res or folder.schedules:
        scenes.prepare(resolution)
        schedule = folder.schedules[resolution]
        found = evaluate_reconstruction(vqvae, scenes, resolution, len(scenes), schedule=schedule)
        by_side = ", ".join(f"{side}: {100 * share:.0f}" for side, share in found.used_by_side.items())
        row = (resolution, found.count, f"{found.psnr:.2f}", f"{found.ssim:.3f}", f"{100 * found.used:.1f}", by_side)
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
