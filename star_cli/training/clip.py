"""Stage 0: a small CLIP on generated scenes; its text tower becomes the frozen text encoder.

A batch is made of families: a scene and variants of it that differ in one respect (a colour swapped, left for right).
Only a tower that binds each colour to its object and reads relations tells the captions of a family apart.

Letters: B pairs of image and caption, T tokens, E shared width, H W pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star_cli.data import shapes
from star_cli.errors import OptionError
from star_cli.models.config import Config, TextEncoderConfig
from star_cli.models.text_open_clip import load_tokenizer, save_open_clip_text
from star_cli.training.reading import Reader, scene_labels

_TRIES = 8
"""Variants drawn for each one that a family needs, before its scene is given up."""


@dataclass(frozen=True, kw_only=True)
class ClipStageConfig(Config):
    """The small CLIP and the batches it learns from. Defaults are those of star-shapes."""

    embed_width: int = 96
    """E, width in which captions and images are compared; not used after this stage."""
    text_width: int = 96
    """D, width of the text features; the embedding of 49408 tokens is nearly all of the stored tower."""
    text_heads: int = 3
    """Attention heads of the text tower."""
    text_layers: int = 4
    """Blocks of the text tower."""
    max_tokens: int = 48
    """T, tokens of a caption: three described objects need about 40."""
    image_size: int = 64
    """Pixels per side of the images that captions are compared with."""
    patch: int = 8
    """Pixels per side of a token of the image tower."""
    vision_width: int = 128
    """Width of the image tower; its heads are 32 wide."""
    vision_layers: int = 4
    """Blocks of the image tower."""
    families: int = 32
    """Scenes of a batch that were drawn independently of each other."""
    variants: int = 3
    """Further scenes of each family: hard negatives that differ from the first in one respect."""
    reading_share: float = 0.7
    """Share of batches that are captions alone, for the reading loss: no image tower, no hard negatives, so cheap."""
    reading_batch_size: int = 256
    """Captions in such a batch."""
    reading_weight: float = 1.0
    """Weight of the reading loss, see `reading.py`."""
    batch_size: int = 128
    """Pictures of a batch when they are not the generated scenes, which come in families."""

    def __post_init__(self) -> None:
        if self.text_width % self.text_heads or self.vision_width % 32:
            raise OptionError("text_width must be divisible by text_heads, vision_width by 32")
        if self.image_size % self.patch:
            raise OptionError(f"image_size {self.image_size} must be divisible by patch {self.patch}")
        if self.families < 2 or self.variants < 0 or self.batch_size < 2:
            raise OptionError("a batch needs at least two families or pictures, and no fewer than zero variants")
        if not 0 <= self.reading_share <= 1:
            raise OptionError(f"reading_share must be from 0 to 1, not {self.reading_share}")
        if self.reading_batch_size < 1:
            raise OptionError(f"reading_batch_size must be at least 1, not {self.reading_batch_size}")

    @property
    def open_clip_config(self) -> dict[str, Any]:
        """The model in open_clip's own words: the arguments of `open_clip.CLIP`, stored beside the weights."""
        return {
            "embed_dim": self.embed_width,
            "vision_cfg": {
                "image_size": self.image_size,
                "patch_size": self.patch,
                "width": self.vision_width,
                "layers": self.vision_layers,
                "head_width": 32,
                "pool_type": "avg",
            },
            "text_cfg": {
                "context_length": self.max_tokens,
                "vocab_size": 49408,
                "width": self.text_width,
                "heads": self.text_heads,
                "layers": self.text_layers,
            },
        }

    @property
    def text_encoder_config(self) -> TextEncoderConfig:
        """What a model folder says about the trained tower."""
        return TextEncoderConfig(
            kind="open_clip", source="text_encoder", width=self.text_width, max_tokens=self.max_tokens
        )


@dataclass(frozen=True)
class ClipBatch:
    """Pairs of image and caption; families stand together.

    Args:
        images: (B, 3, H, W), -1..1; None in a batch of captions alone.
        tokens: captions, (B, T), int64.
        labels: what their scenes show, (B, A), int64; None for pictures that nobody described so.
        skipped: names of pictures that could not be read and have others in their place.
    """

    images: Tensor | None
    tokens: Tensor
    labels: Tensor | None
    skipped: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> ClipBatch:
        """The same pairs on another device."""
        images = None if self.images is None else self.images.to(device)
        labels = None if self.labels is None else self.labels.to(device)
        return ClipBatch(images, self.tokens.to(device), labels, self.skipped)


def build_clip(config: ClipStageConfig) -> nn.Module:
    """A new open_clip model with random weights (from torch's global generator)."""
    from open_clip import CLIP

    model: nn.Module = CLIP(**config.open_clip_config)
    return model


def clip_batch(config: ClipStageConfig, step: int, seed: int) -> ClipBatch:
    """The batch of one training step: a function of `seed` and `step` alone, so that a resumed run sees the same."""
    rng = random.Random(f"clip {seed} {step}")
    first_seeds = iter(lambda: rng.randrange(shapes.HELD_OUT_SEED), None)
    if rng.random() < config.reading_share:
        pairs = [shapes.sample(next(first_seeds)) for _ in range(config.reading_batch_size)]
        return _collate(config, pairs, with_images=False)
    groups = _families(config, first_seeds, rng, config.families)
    return _collate(config, [pair for group in groups for pair in group])


def pooled_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """What `open_clip.CLIP.encode_text` gives, (B, E), without the work on padding behind the longest caption.

    The tower is causal and its feature that of the end of text, so the padding changes nothing.
    """
    end = tokens.argmax(dim=1)  # end of text has the largest id
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]  # type: ignore[operator,index]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))  # type: ignore[operator,index]
    pooled: Tensor = x[torch.arange(len(x), device=x.device), end] @ model.text_projection
    return pooled


def clip_loss(
    model: nn.Module, batch: ClipBatch, reader: Reader | None = None, reading_weight: float = 1.0
) -> tuple[Tensor, dict[str, float]]:
    """open_clip's contrastive loss in float32 where there are images, plus the reading loss where there is a reader.

    Returns:
        The loss; `accuracy`, the share of captions that find their image in the batch; `read`, the share of captions of
        which the reader tells everything right.
    """
    from open_clip import ClipLoss

    features = pooled_text(model, batch.tokens)  # (B, E)
    loss = features.new_zeros(())
    metrics: dict[str, float] = {}
    if batch.images is not None:
        images = model.encode_image(batch.images, normalize=True)  # type: ignore[operator]  # (B, E)
        captions = F.normalize(features, dim=-1)
        with torch.autocast(batch.images.device.type, enabled=False):
            gain = model.logit_scale.clamp(max=math.log(100)).exp()  # type: ignore[operator]  # CLIP, section 2.5
            loss = ClipLoss()(images.float(), captions.float(), gain)
        with torch.no_grad():
            found = (captions.float() @ images.float().T).argmax(dim=1)
            accuracy = (found == torch.arange(len(found), device=found.device)).float().mean()
        metrics |= {"accuracy": accuracy.item(), "gain": gain.item()}
    if reader is not None and batch.labels is not None:
        reading_loss, read = reader(features, batch.labels)
        loss, metrics["read"] = loss + reading_weight * reading_loss, read.item()
    return loss, metrics


@torch.no_grad()
def retrieval_accuracy(
    model: nn.Module, config: ClipStageConfig, families: int = 64, seed: int = 0
) -> dict[str, float]:
    """How often a held-out caption finds its image, and an image its caption.

    Args:
        model: a CLIP of this stage; its mode (training or not) is left as it was.
        config: how many variants a scene has, and what the model reads.
        families: held-out scenes; each comes with the variants of the config.
        seed: which held-out scenes.
    Returns:
        `text_to_image` and `image_to_text` among all scenes, `family` among the variants of one scene (hard negatives).
    """
    rng = random.Random(f"clip evaluation {seed}")
    first = shapes.HELD_OUT_SEED + seed * 1_000_000
    groups = list(_families(config, iter(range(first, first + 1_000_000)), rng, families))
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    images, captions = [], []
    for group in groups:
        batch = _collate(config, group).to(device)
        images.append(model.encode_image(batch.images, normalize=True))  # type: ignore[operator]
        captions.append(model.encode_text(batch.tokens, normalize=True))  # type: ignore[operator]
    model.train(was_training)
    similarity = torch.cat(captions) @ torch.cat(images).T  # (B, B)
    own = torch.arange(len(similarity), device=device)
    family = [
        (words @ pictures.T).argmax(dim=1) == own[: len(words)]
        for words, pictures in zip(captions, images, strict=True)
    ]
    return {
        "text_to_image": (similarity.argmax(dim=1) == own).float().mean().item(),
        "image_to_text": (similarity.argmax(dim=0) == own).float().mean().item(),
        "family": torch.cat(family).float().mean().item(),
    }


def save_text_encoder(model: nn.Module, config: ClipStageConfig, folder: Path) -> None:
    """Write the text tower as the folder that `config.text_encoder_config` is read from."""
    save_open_clip_text(model, config.open_clip_config, folder)


def _families(
    config: ClipStageConfig, first_seeds: Iterator[int], rng: random.Random, count: int
) -> Iterator[list[tuple[shapes.Scene, str]]]:
    """Families of scenes with captions. No scene and no caption comes twice: each would be its own false negative."""
    scenes: set[shapes.Scene] = set()
    captions: set[str] = set()

    def is_new(scene: shapes.Scene, caption: str) -> bool:
        return scene not in scenes and caption not in captions

    while count > 0:
        shown, caption = shapes.sample(next(first_seeds))
        family = {shown: caption} if is_new(shown, caption) else {}
        for _ in range(_TRIES * config.variants):
            if not family or len(family) == 1 + config.variants:
                break
            other = shapes.variant(shown, rng)
            caption = shapes.caption(other, rng)
            if is_new(other, caption) and other not in family and caption not in family.values():
                family[other] = caption
        if len(family) == 1 + config.variants:  # some scenes have too few variants: another one is taken
            scenes.update(family)
            captions.update(family.values())
            count -= 1
            yield list(family.items())


def _collate(config: ClipStageConfig, pairs: list[tuple[shapes.Scene, str]], with_images: bool = True) -> ClipBatch:
    images = (
        torch.stack([shapes.render_tensor(scene, config.image_size) for scene, _ in pairs]) if with_images else None
    )
    tokens = _tokenizer(config.max_tokens)([caption for _, caption in pairs])
    return ClipBatch(images, tokens, scene_labels([scene for scene, _ in pairs]))


@lru_cache(maxsize=2)
def _tokenizer(max_tokens: int) -> Any:
    return load_tokenizer(max_tokens)
