"""A picture that was drawn, with all that is needed to draw it again.

Letters: H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from star_cli.images import encode_image, format_of, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class GeneratedImage:
    """A picture with all that is needed to draw it again."""

    pixels: Tensor
    """(H, W, 3), uint8."""
    recipe: dict[str, Any]
    """Prompt and negative prompt, or class; resolution, seed, options, model, its hash, device, dtype, version;
    "quantize" when the weights were rounded."""
    token_maps: list[Tensor]
    """Tokens of each scale, (side, side), int64."""

    def to_pil(self) -> Image:
        """The picture for Pillow."""
        from PIL import Image

        return Image.fromarray(self.pixels.numpy())

    def encode(self, format: str = "png") -> bytes:  # noqa: A002 - Pillow's word for it
        """The bytes of a file with the recipe inside: "png", "webp" or "jpeg"."""
        return encode_image(self.pixels, self.recipe, format)

    def save(self, path: Path | str, format: str | None = None, overwrite: bool = False) -> Path:  # noqa: A002
        """Write the picture, whole or not at all.

        Args:
            path: the file.
            format: "png", "webp" or "jpeg"; follows the suffix when None.
            overwrite: replace a file that is already there.
        Returns:
            The path written.
        Raises:
            OutputPathError: an unknown suffix, a folder, or a file that exists.
            OutputError: writing failed.
        """
        path = Path(path)
        write_whole(path, self.encode(format or format_of(path)), overwrite=overwrite)
        return path
