"""Mean codes in place of drawn ones on the last scales."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from star_cli.cli.app import app
from star_cli.errors import OptionError
from star_cli.generation.filtering import draw_tokens, probabilities_of
from star_cli.generation.options import SamplingOptions
from star_cli.generation.randomness import random_generators
from star_cli.generation.smoothing import draw_codes
from star_cli.pipeline import StarPipeline

SMOOTH = SamplingOptions(guidance=2.0, top_k=5, top_p=0.9, temperature=0.8, smooth=2)


def test_the_last_scales_take_the_mean_of_what_may_be_drawn(tiny_pipeline: StarPipeline) -> None:
    schedule, quantizer = tiny_pipeline.schedules[32], tiny_pipeline.vqvae.quantizer
    generator = torch.Generator().manual_seed(0)
    for scale, (side, size) in enumerate(zip(schedule.sides, schedule.sizes, strict=True)):
        logits = 3 * torch.randn(2, size, quantizer.config.codebook_size, generator=generator)
        tokens, codes = draw_codes(logits, quantizer, scale, schedule, SMOOTH, random_generators([0, 1]))
        assert torch.equal(tokens, draw_tokens(logits, SMOOTH, random_generators([0, 1])))
        if scale < len(schedule) - 2:
            assert torch.equal(codes, quantizer.look_up(tokens, side))
            continue
        likely = (logits / 0.8).topk(5)  # top-p drops more of them
        expected = torch.zeros_like(codes).flatten(2)  # (B, C, l)
        for row in range(2):
            for place in range(size):
                shares, kept = [], 0.0
                for value, share in zip(likely.indices[row, place], likely.values[row, place].softmax(-1), strict=True):
                    if kept < 0.9:
                        shares.append((int(value), float(share)))
                    kept += float(share)
                whole = sum(share for _, share in shares)
                for code, share in shares:
                    expected[row, :, place] += share / whole * quantizer.codebook.weight[code]
        assert torch.allclose(codes.flatten(2), expected, atol=1e-5)


def test_what_is_certain_is_the_code_itself(tiny_pipeline: StarPipeline) -> None:
    schedule, quantizer = tiny_pipeline.schedules[32], tiny_pipeline.vqvae.quantizer
    last = len(schedule) - 1
    logits = torch.randn(1, schedule.sizes[last], quantizer.config.codebook_size)
    for sure in (replace(SMOOTH, top_k=1), replace(SMOOTH, temperature=0.0)):
        tokens, codes = draw_codes(logits, quantizer, last, schedule, sure, random_generators([0]))
        assert torch.equal(tokens, logits.argmax(-1))
        assert torch.equal(codes, quantizer.look_up(tokens, schedule.last_side))
    assert torch.allclose(probabilities_of(logits, SMOOTH).sum(-1), torch.ones(1), atol=1e-6)


def test_a_smooth_picture_is_its_own_whatever_is_drawn_beside_it(tiny_pipeline: StarPipeline) -> None:
    words = ["a red circle", "a blue square", "a green triangle"]
    together = tiny_pipeline(words, seed=3, options=SMOOTH)
    alone = [tiny_pipeline(word, seed=3, options=SMOOTH)[0] for word in words]
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(together, alone, strict=True))
    sharp = tiny_pipeline(words, seed=3, options=replace(SMOOTH, smooth=0))
    assert not any(torch.equal(one.pixels, other.pixels) for one, other in zip(together, sharp, strict=True))
    plain = tiny_pipeline(words, seed=3, options=replace(SMOOTH, speed="reference"))
    for one, other in zip(together, plain, strict=True):
        assert (one.pixels.int() - other.pixels.int()).abs().max() <= 1


def test_every_scale_may_be_smooth(tiny_pipeline: StarPipeline) -> None:
    first, second = (tiny_pipeline("a cat", seed=seed, options=replace(SMOOTH, smooth=99))[0] for seed in (0, 1))
    assert torch.equal(first.pixels, second.pixels)  # nothing is left to chance


def test_the_command_draws_smoothly_and_draws_the_same_from_its_picture(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    command = ["generate", "--model", str(tiny_model_folder), "--quiet", "--out"]
    result = CliRunner().invoke(app, [*command, str(first), "--smooth", "1", "a cat"])
    assert result.exit_code == 0, result.stderr
    result = CliRunner().invoke(app, [*command, str(again), "--from-image", str(first)])
    assert result.exit_code == 0, result.stderr
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"smooth": -1}, "at least 0"), ({"smooth": 1, "compat": "official"}, "give --smooth 0")],
)
def test_what_cannot_be_smooth_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError) as refused:
        SamplingOptions(**options)  # type: ignore[arg-type]
    assert said in f"{refused.value} {refused.value.hint}"


def test_stable_sampling_and_mean_codes_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="--smooth"):
        SMOOTH.for_head(True)
    assert replace(SMOOTH, stable=False).for_head(True).smooth == 2
