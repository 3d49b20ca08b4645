"""Icons as pixels: rendered once at a few sizes, kept on disk as PNG in one file per size, resized as scenes ask.

Letters: S pixels per side of a rendered icon.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from star_cli.data.icons.archive import OpenArchive
from star_cli.data.icons.fetch import IconSet, icons_root
from star_cli.errors import DataError, StarError

SIZES = (64, 128, 256, 512, 1024)
"""S of what is kept on disk; a scene takes the smallest that it need not enlarge."""
_KEPT_IMAGES = 768
_KEPT_RESIZED = 512


def render_svg(svg: str, size: int) -> bytes:
    """An SVG document as a PNG file of S x S pixels with transparency.

    Raises:
        StarError: the renderer is not installed.
        DataError: the document cannot be drawn.
    """
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise StarError("drawing icons needs resvg_py", "pip install 'star-cli[icons]'") from error
    try:
        # the icons hold no text: without the system's fonts a small icon takes milliseconds, with them seconds
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    except ValueError as error:
        raise DataError(f"an icon cannot be drawn: {error}") from error


class IconRenders:
    """The icons of a set at any size. Picklable: worker processes open the files again.

    Icons that are on disk (see `prepare`) are read from there; others are rendered when asked for, and kept in memory.
    """

    def __init__(self, icons: IconSet):
        self.icons = icons
        self._archives: dict[int, OpenArchive | None] = {}
        self._master = lru_cache(_KEPT_IMAGES)(self._read)
        self._resized = lru_cache(_KEPT_RESIZED)(self._resize)

    def __reduce__(self) -> tuple[Any, ...]:
        """Neither open files nor pixels travel."""
        return IconRenders, (self.icons,)

    def image(
        self, icon: str, size: int, is_flipped: bool = False, angle: int = 0, master: int | None = None
    ) -> Image.Image:
        """An icon as RGBA, S x S; not to be changed by the caller.

        Args:
            icon: its name.
            size: S.
            is_flipped: mirror it left to right.
            angle: turned by so many degrees, anticlockwise.
            master: one of `SIZES`, at least S: which render it is made from; the smallest that is large enough if None.
        """
        return self._resized(icon, size, is_flipped, angle, master or master_size(size))

    def prepare(self, names: Iterable[str], size: int, on_icon: Callable[[int, int], None] | None = None) -> None:
        """Render icons into the file of the cache for scenes up to so many pixels; those already there are kept.

        Args:
            names: icons.
            size: the largest S that will be asked for.
            on_icon: called with icons done and their number.
        """
        size = master_size(size)
        path = self._path(size)
        known = dict(self._stored(size))
        missing = sorted(set(names) - set(known))
        if not missing:
            return
        for done, icon in enumerate(missing, 1):
            known[icon] = render_svg(self.icons.svg(icon), size)
            if on_icon is not None:
                on_icon(done, len(missing))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
                for icon, drawn in known.items():
                    archive.writestr(f"{icon}.png", drawn)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._archives.pop(size, None)

    def _path(self, size: int) -> Path:
        return icons_root() / f"renders-{self.icons.fingerprint}-{size}.zip"

    def _stored(self, size: int) -> Iterable[tuple[str, bytes]]:
        archive = self._archive(size)
        if archive is not None:
            for name in archive.names():
                yield name.removesuffix(".png"), archive.read(name)

    def _archive(self, size: int) -> OpenArchive | None:
        """The file of one size; None where there is none."""
        if size not in self._archives:
            path = self._path(size)
            archive = OpenArchive(path, "delete it: it is made again when needed")
            self._archives[size] = archive if path.is_file() else None
        return self._archives[size]

    def _read(self, icon: str, size: int) -> Image.Image:
        archive = self._archive(size)
        try:
            drawn = None if archive is None else archive.read(f"{icon}.png")
        except KeyError:
            drawn = None
        return Image.open(io.BytesIO(drawn or render_svg(self.icons.svg(icon), size))).convert("RGBA")

    def _resize(self, icon: str, size: int, is_flipped: bool, angle: int, master: int) -> Image.Image:
        image = self._master(icon, master)
        if image.width != size:
            image = image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
        if is_flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if angle:
            image = image.convert("RGBa").rotate(angle, Image.Resampling.BICUBIC).convert("RGBA")
        return image


def master_size(size: int) -> int:
    """S of the kept renders that icons of this size are made from."""
    return next((kept for kept in SIZES if kept >= size), SIZES[-1])
