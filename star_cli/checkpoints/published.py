"""The published models, as data: settings travel with the name, so none can be left out or mixed up.

Sources: STAR (arXiv 2406.10797), VAR (arXiv 2404.02905), their code's training configurations and sampling scripts.
`docs/weights.md` shows the same as a table. A file name that is None is not known for sure: `star weights download`
lists the repository and asks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from star_cli.errors import ModelNotFoundError
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import TextEncoderConfig, TransformerConfig, VQVAEConfig
from star_cli.models.schedule import ScaleSchedule

SIDES_256 = ScaleSchedule((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
SIDES_512 = ScaleSchedule((1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
SIDES_1024 = ScaleSchedule((1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64))

VQVAE = VQVAEConfig()
"""One tokenizer for all of them; the defaults are the published ones."""
VQVAE_FILE = "vae_ch160v4096z32.pth"

# Stable Diffusion 2.1's tower. Without its files: the same tower inside a larger one, that one's last block left out.
CLIP = TextEncoderConfig(kind="clip", width=1024)
OPEN_CLIP = TextEncoderConfig(
    kind="open_clip", source="ViT-H-14:laion2b_s32b_b79k", width=1024, max_tokens=77, drop_last_blocks=1
)
T5 = TextEncoderConfig(
    kind="t5",
    source="google/flan-t5-xl",
    width=2048,
    max_tokens=120,
    pooling="mean_with_padding",
    clean_captions=True,
)

STAR_SAMPLING = SamplingOptions(guidance=4.0, top_k=600, top_p=0.8)
VAR_SAMPLING = SamplingOptions(guidance=1.5, top_k=900, top_p=0.96)


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """All that is known of a published model before its weights are there."""

    name: str
    title: str
    """A few words for lists."""
    transformer: TransformerConfig
    vqvae: VQVAEConfig = VQVAE
    schedule: ScaleSchedule
    sampling: SamplingOptions
    text_encoder: TextEncoderConfig | None
    """How to load the text tower from its files; None for a class-conditional model."""
    text_reference: TextEncoderConfig | None
    """The same features by a hub name, for when nobody has the files."""
    repository: str
    """On the hub."""
    transformer_file: str | None
    """In the repository; None when it must be looked for there."""
    vqvae_file: str = VQVAE_FILE
    text_folder: str | None = None
    """In the repository."""
    licence: str = "MIT"
    is_published: bool = True
    """False for a configuration whose weights everybody has to train with the authors' code."""

    @property
    def resolution(self) -> int:
        """Side of the picture, in pixels."""
        return self.schedule.last_side * self.vqvae.factor

    @property
    def places(self) -> str:
        """Which files of which repository make this model, in words."""
        transformer = self.transformer_file or "the transformer's file"
        text = f", {self.text_folder}/" if self.text_folder else ""
        return f"{transformer}, {self.vqvae_file}{text} of {self.repository}"


def _star(depth: int, schedule: ScaleSchedule, **changes: Any) -> TransformerConfig:
    """STAR's shape rule: heads = depth, width = 64 * depth."""
    return TransformerConfig.from_dict(
        {
            "depth": depth,
            "width": 64 * depth,
            "heads": depth,
            "levels": len(schedule),
            # What the authors' code does to one image at a time, and keeps the images of a batch apart.
            "cross_attention_rows": "conditional",
            **changes,
        }
    )


def _var(depth: int, schedule: ScaleSchedule, modulation: str = "class") -> TransformerConfig:
    return TransformerConfig.from_dict(
        {
            "depth": depth,
            "width": 64 * depth,
            "heads": depth,
            "levels": len(schedule),
            "conditioning": "class",
            "cross_attention": False,
            "position": "learned",
            "learned_positions": schedule.length,
            "modulation": modulation,
        }
    )


_STAR_256 = PublishedModel(
    name="star-256",
    title="STAR, depth 30, 256 px",
    transformer=_star(30, SIDES_256),
    schedule=SIDES_256,
    sampling=STAR_SAMPLING,
    text_encoder=CLIP,
    text_reference=OPEN_CLIP,
    repository="taocrayon/STAR",
    transformer_file="star_rope_d30_256-ar-ckpt-ep3-iter20000.pth",
    text_folder="CLIP",
)
_VAR_D16 = PublishedModel(
    name="var-d16",
    title="VAR, depth 16, 256 px, ImageNet classes",
    transformer=_var(16, SIDES_256),
    schedule=SIDES_256,
    sampling=VAR_SAMPLING,
    text_encoder=None,
    text_reference=None,
    repository="FoundationVision/var",
    transformer_file="var_d16.pth",
)

_MODELS = [
    replace(
        _STAR_256,
        name="star-256-d16",
        title="STAR, depth 16, 256 px",
        transformer=_star(16, SIDES_256),
        transformer_file=None,
    ),
    _STAR_256,
    replace(
        _STAR_256,
        name="star-512",
        title="STAR, depth 30, 512 px",
        transformer=_star(30, SIDES_512),
        schedule=SIDES_512,
        transformer_file=None,
    ),
    replace(
        _STAR_256,
        name="star-1024",
        title="STAR, depth 30, 1024 px",
        transformer=_star(30, SIDES_1024),
        schedule=SIDES_1024,
        transformer_file="star_rope_d30_1024_drop_3-ar-ckpt-ep1-iter21000.pth",
    ),
    replace(
        _STAR_256,
        name="star-1024-stable",
        title="STAR, depth 30, 1024 px, with stable sampling",
        transformer=_star(30, SIDES_1024, stable_head=True),
        schedule=SIDES_1024,
        transformer_file=None,
    ),
    replace(
        _STAR_256,
        name="star-256-d16-t5",
        title="STAR, depth 16, 256 px, T5 instead of CLIP",
        transformer=_star(16, SIDES_256, text_width=2048),
        text_encoder=T5,
        text_reference=T5,
        transformer_file=None,
        text_folder=None,
        is_published=False,
    ),
    _VAR_D16,
    *(
        replace(
            _VAR_D16,
            name=f"var-d{depth}",
            title=f"VAR, depth {depth}, 256 px, ImageNet classes",
            transformer=_var(depth, SIDES_256),
            transformer_file=f"var_d{depth}.pth",
        )
        for depth in (20, 24, 30)
    ),
    replace(
        _VAR_D16,
        name="var-d36-s",
        title="VAR, depth 36, 512 px, ImageNet classes, one adaptive LayerNorm for all blocks",
        transformer=_var(36, SIDES_512, "class_shared"),
        schedule=SIDES_512,
        transformer_file="var_d36.pth",
    ),
]

PUBLISHED = {model.name: model for model in _MODELS}


def published_model(name: str) -> PublishedModel:
    """The published model of this name.

    Raises:
        ModelNotFoundError: there is none.
    """
    if name not in PUBLISHED:
        raise ModelNotFoundError(
            f"no published model is called {name!r}; known: {', '.join(PUBLISHED)}", "see `star weights list`"
        )
    return PUBLISHED[name]
