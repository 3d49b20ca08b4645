"""Prompt to picture, for users of the library and for the commands.

    pipe = StarPipeline.from_pretrained()
    (image,) = pipe("a cat on green grass", res=512, seed=7)
    image.save("picture.png")

Letters: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from star_cli import __version__
from star_cli.asked import checked_resolution
from star_cli.checkpoints.folder import usual_resolution
from star_cli.checkpoints.known import SHIPPED, find_model
from star_cli.generated import GeneratedImage
from star_cli.generation.copies import Copies, one_behind
from star_cli.generation.decoding import TokenDecoder
from star_cli.generation.drawn import Drawn, OnScale, progress_of_pass
from star_cli.generation.official import as_published, decode_as_published
from star_cli.generation.options import SamplingOptions, check_compat
from star_cli.generation.randomness import Randomness, random_generators
from star_cli.generation.recorded import CudaGraphs, Recordings
from star_cli.generation.sampler import draw
from star_cli.hardware import choose_graphs, choose_precision
from star_cli.images import to_uint8, to_uint8_truncated
from star_cli.jobs import ImageJob, jobs_of
from star_cli.models.condition import ClassCondition, Condition
from star_cli.models.float32 import exact_float32
from star_cli.models.rounding import round_blocks
from star_cli.models.schedule import ScaleSchedule
from star_cli.models.text import TextEncoder
from star_cli.models.transformer import StarTransformer
from star_cli.models.vqvae import MultiScaleVQVAE
from star_cli.vocabulary import unknown_words

Told = tuple[Condition, Condition]
"""What the transformer is told of each image, and what guidance leads away from."""


class StarPipeline:
    """Text encoder, transformer and VQVAE of one model, ready to draw.

    Args:
        name: of the model, for recipes.
        model_hash: identity of the model, for recipes.
        transformer: predicts the tokens.
        vqvae: makes pixels of them.
        text_encoder: reads the prompts; None for a model that draws classes.
        schedules: scale schedule of each resolution in pixels.
        sampling: the model's default options.
        default_resolution: drawn when none is asked for; 256 if the model knows it, else the smallest.
        device: where all parts are.
        dtype: of blocks and decoder, for recipes.
        max_batch: images in one pass; more are drawn one pass after another.
        words: all that the model's captions used; None: not known.
        quantize: how the blocks' weights were rounded, and on a CPU the decoder's will be ("int8", "fp8"); None: not
            at all.
    """

    def __init__(
        self,
        *,
        name: str,
        model_hash: str,
        transformer: StarTransformer,
        vqvae: MultiScaleVQVAE,
        text_encoder: TextEncoder | None,
        schedules: Mapping[int, ScaleSchedule],
        sampling: SamplingOptions,
        default_resolution: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_batch: int = 8,
        words: frozenset[str] | None = None,
        quantize: str | None = None,
    ):
        self.name = name
        self.model_hash = model_hash
        self.transformer = transformer
        self.vqvae = vqvae
        self.text_encoder = text_encoder
        self.schedules = dict(schedules)
        self.defaults = sampling
        self.default_resolution = default_resolution or usual_resolution(schedules)
        self.device = torch.device(device)
        self.dtype = dtype
        self.max_batch = max_batch
        self.words = words
        self.quantize = quantize
        self.decoder = TokenDecoder(vqvae, is_rounded=quantize is not None)
        self.graphs = choose_graphs(self.device)
        self.recordings: Recordings | None = None
        if self.graphs is not None:
            compiler = "inductor" if self.graphs == "compiled" else None
            self.recordings = Recordings(transformer, partial(CudaGraphs, self.device), compiler)
        self._nothing: Condition | None = None  # features of the empty prompt, once they are asked for

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = SHIPPED,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str | None = None,
    ) -> StarPipeline:
        """Load a model by its name, or from a model folder.

        Args:
            name_or_folder: a name that `star models` lists, or a path.
            device: "auto", "cpu", "cuda", "mps".
            dtype: "auto", "float32", "bfloat16", "float16".
            quantize: "int8" rounds the weights of the blocks, on a CPU the decoder's, too; "fp8" the blocks', on a
                GPU; None or "none" does not.
        Raises:
            ModelNotFoundError: no such model.
            ModelFolderError: it is incomplete or damaged.
            OptionError: a device that is not there, an unknown dtype, or a rounding that is not there on the device.
        """
        chosen_device, chosen_dtype, rounding = choose_precision(device, dtype, quantize)
        folder = find_model(name_or_folder)
        transformer = folder.load_transformer(chosen_device, chosen_dtype)
        if rounding is not None:
            round_blocks(transformer, rounding)
        return cls(
            name=folder.name,
            model_hash=folder.hash,
            transformer=transformer,
            vqvae=folder.load_vqvae(chosen_device, chosen_dtype),
            text_encoder=folder.load_text_encoder(chosen_device) if folder.class_count is None else None,
            schedules=folder.schedules,
            sampling=folder.sampling,
            default_resolution=folder.default_resolution,
            device=chosen_device,
            dtype=chosen_dtype,
            words=folder.words,
            quantize=rounding,
        )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides in pixels that this model draws, smallest first."""
        return tuple(sorted(self.schedules))

    @property
    def class_count(self) -> int | None:
        """Classes that this model draws; None when it draws words."""
        return self.transformer.config.class_count

    def pass_size(self, options: SamplingOptions) -> int:
        """How many images, at most, are drawn in one pass with these options."""
        return 1 if options.compat == "official" or self._draws_singly(options) else self.max_batch

    def words_cut(self, prompt: str) -> str:
        """The end of the prompt that the text encoder does not read; "" when it reads all."""
        return "" if self.text_encoder is None else self.text_encoder.words_cut(prompt)

    def words_unknown(self, prompt: str) -> list[str]:
        """Words of the prompt that no caption had which the model learned from; none where they were not counted."""
        return [] if self.words is None else unknown_words(prompt, self.words)

    def remarks(self, prompt: str) -> Iterator[str]:
        """What whoever wrote the prompt should be told: words that are not read, words that are not known."""
        if cut := self.words_cut(prompt):
            yield f"too long, the model does not read: {cut}"
        if unknown := self.words_unknown(prompt):
            yield f"the model may not know: {', '.join(unknown)}"

    def __call__(
        self,
        prompts: str | Sequence[str] = (),
        *,
        classes: int | str | Sequence[int | str] = (),
        res: int | None = None,
        seed: int = 0,
        num: int = 1,
        negative: str = "",
        options: SamplingOptions | None = None,
        on_scale: OnScale | None = None,
    ) -> list[GeneratedImage]:
        """Draw pictures. Each depends on its own prompt (or class) and seed alone, not on what is drawn beside it.

        Args:
            prompts: one prompt or several, for a model that draws words.
            classes: one class or several, by number or name, for a model that draws classes.
            res: side in pixels, one of `resolutions`; `default_resolution` when None.
            seed: image i of each prompt is drawn from seed + i.
            num: images of each prompt.
            negative: what guidance leads away from.
            options: how tokens are drawn; the model's defaults when None.
            on_scale: called after each scale with the number of scales done and their total, over all passes.
        Returns:
            All images of the first prompt or class, then those of the second, and so on.
        Raises:
            OptionError: an empty prompt, a resolution that the model does not draw, a seed or number out of range;
                words for a model that draws classes, or the reverse; an option that the weights or several images rule
                out.
        """
        jobs = jobs_of(self, prompts, classes, negative, seed, num)
        res = checked_resolution(res, self)
        options = options or self.defaults
        at_once = self.pass_size(options)
        check_compat(options, len(jobs), self.quantize or self._dtype_name)
        images: list[GeneratedImage] = []
        for start in range(0, len(jobs), at_once):
            progress = progress_of_pass(on_scale, start, len(jobs), at_once)
            images += self.draw_jobs(jobs[start : start + at_once], res=res, options=options, on_scale=progress)
        return images

    def tell(self, jobs: Sequence[ImageJob]) -> Told:
        """Read the words of some images: the part of `draw_jobs` that another thread may do ahead."""
        if self.text_encoder is None:
            labels = torch.tensor([job.subject for job in jobs], device=self.device)
            nothing = torch.full_like(labels, self.transformer.config.classes)
            return ClassCondition(labels), ClassCondition(nothing)
        with exact_float32(self.text_encoder.device):
            condition = self.text_encoder.encode([str(job.subject) for job in jobs]).to(self.device)
            return condition, self._tell_negative([job.negative for job in jobs], self.text_encoder)

    def _tell_negative(self, negatives: list[str], text_encoder: TextEncoder) -> Condition:
        """Features of what guidance leads away from; those of the usual "" are read once and kept."""
        if any(negatives):
            return text_encoder.encode(negatives).to(self.device)
        if self._nothing is None:
            self._nothing = text_encoder.encode([""]).to(self.device)
        return self._nothing.rows(torch.zeros(len(negatives), dtype=torch.int64, device=self.device))

    def draw_jobs(
        self,
        jobs: Sequence[ImageJob],
        *,
        res: int,
        options: SamplingOptions,
        told: Told | None = None,
        on_scale: OnScale | None = None,
    ) -> Iterator[GeneratedImage]:
        """Draw some images in one pass, whatever their prompts, negative prompts and seeds; `__call__` checks more.

        Args:
            jobs: at most what memory allows; one with `options.compat` "official".
            res: side in pixels.
            options: how all of them are drawn.
            told: what `tell` gave for these jobs.
            on_scale: progress callback.
        Returns:
            The images in the order of the jobs, each as soon as it is decoded; on a GPU once the next one has begun.
        Raises:
            OptionError: a resolution that the model does not draw, options that the weights or the jobs rule out.
        """
        schedule = self.schedules[checked_resolution(res, self)]
        options = options.for_head(self.transformer.config.stable_head)
        told = told or self.tell(jobs)
        if options.compat == "official":
            yield self._draw_as_published(jobs, told, schedule, res, options, on_scale)
            return
        if self._draws_singly(options) and len(jobs) > 1:
            for row, job in enumerate(jobs):
                own = (told[0].rows(slice(row, row + 1)), told[1].rows(slice(row, row + 1)))
                progress = progress_of_pass(on_scale, row, len(jobs), 1)
                yield from self.draw_jobs([job], res=res, options=options, told=own, on_scale=progress)
            return
        with exact_float32(self.device):
            drawn = self._draw(told, schedule, options, random_generators([job.seed for job in jobs]), on_scale)
        decoded = one_behind(self._decode(drawn, row, schedule, options) for row in range(len(jobs)))
        for job, (pixels, *token_maps) in zip(jobs, decoded, strict=True):
            yield GeneratedImage(pixels, self._recipe(job, res, options), token_maps)

    def _draw(
        self,
        told: Told,
        schedule: ScaleSchedule,
        options: SamplingOptions,
        randomness: Randomness,
        on_scale: OnScale | None,
    ) -> Drawn:
        parts = (self.transformer, self.vqvae.quantizer)
        return draw(*parts, *told, schedule, options, randomness, on_scale, self.recordings)

    def _decode(self, drawn: Drawn, row: int, schedule: ScaleSchedule, options: SamplingOptions) -> Copies:
        """Pixels (H, W, 3) and token maps of one image."""
        token_maps = [token_map[row] for token_map in drawn.token_maps]
        f_hat = drawn.f_hat if options.smooth else self.decoder.f_hat(token_maps, schedule)
        return Copies([to_uint8(self.decoder.pixels(f_hat)), *token_maps])

    @torch.inference_mode()
    def _draw_as_published(
        self,
        jobs: Sequence[ImageJob],
        told: Told,
        schedule: ScaleSchedule,
        res: int,
        options: SamplingOptions,
        on_scale: OnScale | None,
    ) -> GeneratedImage:
        """One image with the published code's random stream and rounding; its text was read outside autocast.

        Raises:
            OptionError: several images, for which that code lets one change the other; weights that are not float32.
        """
        check_compat(options, len(jobs), self.quantize or self._dtype_name)
        (job,) = jobs
        with as_published(job.seed, self.device) as randomness:
            drawn = self._draw(told, schedule, options, randomness, on_scale)
            pixels = decode_as_published(self.vqvae, drawn.f_hat, self.class_count is not None)
        token_maps = [token_map[0].cpu() for token_map in drawn.token_maps]
        return GeneratedImage(to_uint8_truncated(pixels).cpu(), self._recipe(job, res, options), token_maps)

    def _draws_singly(self, options: SamplingOptions) -> bool:
        """Whether rounding that depends on the size of a batch would show: images are then drawn one at a time.

        A mean of codes shows the last bits, which draws of tokens hide. Below float32 rounding is coarse enough to tip
        draws between two codes: drawing singly costs little on a CPU (docs/precision.md), on a GPU most of the speed.
        """
        is_coarse = self.dtype != torch.float32 or self.quantize is not None
        return options.smooth > 0 or (is_coarse and self.device.type == "cpu")

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def _recipe(self, job: ImageJob, res: int, options: SamplingOptions) -> dict[str, Any]:
        words = {"prompt": job.subject, "negative": job.negative}
        subject = words if self.class_count is None else {"class": job.subject}
        return {
            **subject,
            "res": res,
            "seed": job.seed,
            **options.to_dict(),
            "model": self.name,
            "model_hash": self.model_hash,
            "device": self.device.type,
            "dtype": self._dtype_name,
            **({"quantize": self.quantize} if self.quantize else {}),
            "star_version": __version__,
        }
