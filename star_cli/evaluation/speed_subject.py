"""What is measured: a model of the user's, or a published configuration with random weights that need no download.

Letters: B prompts, T text tokens, D width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from star_cli.checkpoints.known import SHIPPED
from star_cli.checkpoints.published import PUBLISHED, PublishedModel
from star_cli.errors import ModelNotFoundError
from star_cli.evaluation.speed_machine import now
from star_cli.evaluation.speed_profile import Clocks
from star_cli.generation.options import SamplingOptions
from star_cli.hardware import choose_precision
from star_cli.jobs import ImageJob
from star_cli.models.condition import TextCondition
from star_cli.models.config import TextEncoderConfig, TransformerConfig
from star_cli.models.flops import count_parameters
from star_cli.models.rounding import round_blocks
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.pipeline import StarPipeline

_SHAPE = re.compile(r"(?P<family>star|var)-(?P<res>256|512|1024)-d(?P<depth>[1-9][0-9]?)")
_BASES = {
    ("star", 256): "star-256",
    ("star", 512): "star-512",
    ("star", 1024): "star-1024",
    ("var", 256): "var-d16",
    ("var", 512): "var-d36-s",
}
"""Whose schedule, modulation and text features a shape has; its depth is its own."""
SHAPES = (
    *("star-256-d16", "star-256-d30", "star-512-d16", "star-512-d30", "star-1024-d30"),
    *("var-256-d16", "var-256-d20", "var-256-d24", "var-256-d30", "var-512-d36"),
)
"""The published ones; other depths can be asked for, too."""
PROMPT = "a red circle to the left of a blue square"
CLASS = 207

TextSource = Literal["encoder", "random features", "none"]


def subjects_of(class_count: int | None, images: int) -> list[str | int]:
    """What a model is asked for: as many prompts, no two alike, or a class where it draws classes."""
    if class_count is not None:
        return [CLASS % class_count] * images
    return [f"{PROMPT}, number {number}" for number in range(images)]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """How a model is loaded. A new option of loading is a field here and a flag of the command."""

    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None


@dataclass(frozen=True)
class Subject:
    """A pipeline, ready, and what is to be said of it."""

    pipeline: StarPipeline
    is_random: bool
    """Random weights: the picture is noise, the work is the same."""
    text: TextSource

    def subjects(self, images: int) -> list[str | int]:
        """See `subjects_of`."""
        return subjects_of(self.pipeline.class_count, images)

    def describe(self) -> dict[str, Any]:
        """Plain data."""
        pipe = self.pipeline
        return {
            "name": pipe.name,
            "weights": "random" if self.is_random else "trained",
            "text": self.text,
            "transformer_parameters": count_parameters(pipe.transformer.config),
            "vqvae_parameters": sum(parameter.numel() for parameter in pipe.vqvae.parameters()),
            "resolutions": list(pipe.resolutions),
        }


@dataclass(frozen=True)
class Workload:
    """One way to draw, again and again: prompt to the bytes of the picture's file."""

    subject: Subject
    res: int
    """In pixels."""
    options: SamplingOptions

    @property
    def schedule(self) -> ScaleSchedule:
        """Of this resolution."""
        return self.subject.pipeline.schedules[self.res]

    @property
    def dtype(self) -> str:
        """Name of the dtype of blocks and decoder."""
        return str(self.subject.pipeline.dtype).removeprefix("torch.")

    def jobs(self, images: int) -> list[ImageJob]:
        """As many images, each with its own prompt and seed."""
        return [ImageJob(subject, seed) for seed, subject in enumerate(self.subject.subjects(images))]

    def draw(self, images: int, clocks: Clocks | None = None) -> float:
        """Draw them in one pass; the seconds it took."""
        pipe = self.subject.pipeline
        jobs = self.jobs(images)
        start = now(pipe.device)
        on_scale = clocks.on_scale if clocks else None
        for image in pipe.draw_jobs(jobs, res=self.res, options=self.options, on_scale=on_scale):
            (clocks.timed("file", image.encode) if clocks else image.encode)("png")
        return now(pipe.device) - start


def load_subject(model: str | None, shape: str | None, precision: Precision) -> Subject:
    """A model by its name or folder, or a shape.

    Raises:
        ModelNotFoundError: there is none of this name.
        OptionError: a device or dtype that cannot be used.
    """
    if shape is not None:
        return _random_subject(shape, precision)
    pipeline = StarPipeline.from_pretrained(model or SHIPPED, **asdict(precision))
    return Subject(pipeline, False, "none" if pipeline.text_encoder is None else "encoder")


def find_shape(name: str) -> PublishedModel:
    """The published configuration of family, resolution and depth: "star-512-d30", "var-256-d16".

    Raises:
        ModelNotFoundError: it is none.
    """
    found = _SHAPE.fullmatch(name)
    base = _BASES.get((found["family"], int(found["res"]))) if found else None
    if found is None or base is None:
        raise ModelNotFoundError(f"there is no shape {name!r}", f"use one of {', '.join(SHAPES)}, or another depth")
    depth, model = int(found["depth"]), PUBLISHED[base]
    shaped = replace(model.transformer, depth=depth, heads=depth, width=64 * depth)
    return replace(model, name=name, transformer=shaped)


def _random_subject(shape: str, precision: Precision) -> Subject:
    model = find_shape(shape)
    device, dtype, rounding = choose_precision(**asdict(precision))
    text = model.text_encoder
    transformer = _filled(StarTransformer, model.transformer, device, dtype)
    if rounding is not None:
        round_blocks(transformer, rounding)
    pipeline = StarPipeline(
        name=shape,
        model_hash="",
        transformer=transformer,
        vqvae=_filled(MultiScaleVQVAE, model.vqvae, device, dtype),
        text_encoder=None if text is None else RandomText(text, device),
        schedules={model.resolution: model.schedule},
        sampling=model.sampling,
        device=device,
        dtype=dtype,
        quantize=rounding,
    )
    return Subject(pipeline, True, "none" if text is None else "random features")


def _filled(build: Any, config: TransformerConfig | Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights of a sound size, made in its dtype: by way of float32 it would need more memory."""
    with torch.device("meta"):
        model: nn.Module = build(config)
    model.set_compute_dtype(dtype)  # type: ignore[operator]  # both models have it
    model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                bound = math.sqrt(3 / parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.fill_(float(name == "weight"))  # a norm's gain; else a bias
    return model


class RandomText(TextEncoder):
    """Features of the right shape from nowhere: the published text encoder is a download of its own, and large."""

    def __init__(self, config: TextEncoderConfig, device: torch.device | str = "cpu"):
        super().__init__(config, device)
        self.tower = nn.Identity()
        states = torch.randn(config.max_tokens, config.width, generator=torch.Generator().manual_seed(0))
        self._states = states.to(self.device)

    def encode(self, prompts: Sequence[str], rows: int = 1) -> TextCondition:
        """The same features for every prompt, no token of which is padding."""
        return TextCondition(*self._encode_rows(list(prompts)))

    def _encode_rows(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        states = self._states.expand(len(texts), -1, -1)
        return states[:, -1], states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)

    def _count_tokens(self, text: str) -> int:
        return len(text.split()) + 2
