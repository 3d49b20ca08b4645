"""Pictures as files: tensor to PNG, WebP or JPEG with its recipe inside, the recipe back, files whole or not at all.

Letters: H W pixels.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import secrets
import stat
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_cli.errors import OutputError, OutputPathError, RecipeError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""Format of each suffix that is known."""
SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
"""The usual suffix of each format."""

_PNG_KEY = "star"
_EXIF_FOLDER, _USER_COMMENT, _ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"  # Exif 2.3: IFD pointer, tag, character code
_JPEG_LONGEST_RECIPE = 65_000
"""Bytes. A JPEG holds its Exif in one segment of at most 65,533 bytes, headers included."""


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels (3, H, W) in -1..1 to (H, W, 3) uint8, rounded to the nearest."""
    import torch

    levels = pixels.float().clamp(-1, 1).add_(1).mul_(127.5).round_()
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous()


def to_uint8_truncated(pixels: Tensor) -> Tensor:
    """As `to_uint8`, but rounded down, and in the arithmetic of the pixels' own dtype: as the published code does."""
    import torch

    levels = pixels.clamp(-1, 1).add_(1).mul_(0.5).mul_(255)
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous()


def format_of(path: Path | str) -> str:
    """The format that a file's suffix names: "png", "webp" or "jpeg".

    Raises:
        OutputPathError: the suffix is missing or names another format.
    """
    path = Path(path)
    if found := FORMATS.get(path.suffix.lower()):
        return found
    wrong = f"unknown suffix {path.suffix!r}" if path.suffix else "no suffix"
    raise OutputPathError(f"{path}: {wrong}; pictures are {', '.join(FORMATS)}", "name the file like picture.png")


def encode_image(pixels: Tensor, recipe: Mapping[str, Any], format: str) -> bytes:  # noqa: A002 - Pillow's word for it
    """The bytes of a picture file with its recipe inside; they depend on nothing but the arguments.

    PNG and WebP keep every pixel; JPEG does not (quality 95). The recipe is JSON in pure ASCII: in PNG the text chunk
    "star", in WebP and JPEG the Exif user comment.

    Args:
        pixels: (H, W, 3), uint8.
        recipe: anything that JSON can say.
        format: "png", "webp" or "jpeg".
    Raises:
        OutputPathError: an unknown format, or a recipe too long for a JPEG.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = Image.fromarray(pixels.numpy())
    text = recipe_to_text(recipe)
    buffer = io.BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_text(_PNG_KEY, text)
        image.save(buffer, "PNG", pnginfo=info)
    elif format == "webp":
        image.save(buffer, "WEBP", lossless=True, exif=_exif(text))
    elif format == "jpeg":
        check_recipe_fits(recipe, format)
        image.save(buffer, "JPEG", quality=95, subsampling=0, exif=_exif(text))
    else:
        raise OutputPathError(f"format must be png, webp or jpeg, not {format}")
    return buffer.getvalue()


def recipe_to_text(recipe: Mapping[str, Any]) -> str:
    """JSON on one line, ASCII alone: any text survives any reader."""
    return json.dumps(dict(recipe), ensure_ascii=True, allow_nan=False)


def check_recipe_fits(recipe: Mapping[str, Any], format: str) -> None:  # noqa: A002
    """Can a picture of this format carry the recipe?

    Raises:
        OutputPathError: it cannot; only a JPEG is ever too small.
    """
    if format == "jpeg" and (length := len(recipe_to_text(recipe))) > _JPEG_LONGEST_RECIPE:
        raise OutputPathError(
            f"a JPEG carries a recipe of at most {_JPEG_LONGEST_RECIPE:,} bytes, this one has {length:,}",
            "use --format png, or a shorter prompt",
        )


def check_words_fit(prompt: str, negative: str, format: str) -> None:  # noqa: A002
    """Can a picture of this format carry a recipe with these words, before the rest of it is known?

    Raises:
        OutputPathError: it cannot.
    """
    check_recipe_fits({"prompt": prompt, "negative": negative, "other keys": " " * 1000}, format)


def read_recipe(path: Path | str) -> dict[str, Any]:
    """The recipe that a picture carries.

    Raises:
        RecipeError: no such file, not a picture, or a picture without a recipe.
    """
    path = Path(path)
    text = _read_text(path)
    if text is None:
        raise RecipeError(f"{path}: carries no recipe", "only pictures that star drew do, until a program drops it")
    try:
        recipe = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: its recipe is damaged: {error}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path}: its recipe is damaged: not a JSON object")
    return recipe


def write_whole(path: Path | str, data: bytes, overwrite: bool = False, scratch: Path | None = None) -> None:
    """Write a file so that it appears whole or not at all, and is on the disk when this returns.

    Args:
        path: the file; a link is followed.
        data: its content.
        overwrite: replace a file that is already there.
        scratch: folder for the unfinished file, on the same disk; the file's own when None.
    Raises:
        OutputPathError: a folder, a device, a file that exists, or a parent folder that does not.
        OutputError: writing failed, for example on a full disk. Nothing is left behind.
    """
    path = Path(path)
    check_target(path, overwrite)
    target = _resolved(path)
    temporary = (scratch or target.parent) / f".{secrets.token_hex(8)}.star-tmp"
    try:
        try:
            _write_synced(temporary, data)
            _move(temporary, target, overwrite)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError as error:
        raise OutputPathError(f"{path} exists", "use another name") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}", way_out(error)) from error


def check_target(
    path: Path,
    overwrite: bool = False,
    *,
    if_folder: str = "name a file inside it",
    if_special: str = "name another file",
    if_exists: str = "use another name",
) -> None:
    """Could `write_whole` start? Cheap; a full disk shows only later.

    Args:
        path: the file; a link is followed.
        overwrite: replace a file that is already there.
        if_folder: hint for a folder: a command knows its own flags.
        if_special: for a device or a pipe.
        if_exists: for a file that is there.
    Raises:
        OutputPathError: see `write_whole`.
    """
    try:
        if path.is_dir():
            raise OutputPathError(f"{path} is a folder, not a file", if_folder)
        if not path.parent.is_dir():
            raise OutputPathError(f"{path}: there is no folder {path.parent}", "make the folder first")
        if os.path.lexists(path):
            if path.exists() and not path.is_file():
                raise OutputPathError(f"{path} is not a regular file", if_special)
            if not overwrite:
                raise OutputPathError(f"{path} exists", if_exists)
            if (target := _resolved(path)).is_symlink():
                raise OutputPathError(f"{path} is a link to itself", "use another name")
            if not target.parent.is_dir():
                raise OutputPathError(
                    f"{path}: it leads to {target}, and there is no such folder", "make the folder first"
                )
    except OutputPathError:
        raise
    except (OSError, ValueError) as error:  # a name too long, a forbidden folder, a NUL inside the name
        raise OutputPathError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def check_folder(folder: Path, hint: str = "give another name") -> None:
    """Is it a folder, or could it be made? `hint` is for something else of this name.

    Raises:
        OutputPathError: it is a file or a link that leads nowhere, its parent is not there, or its name cannot be used.
    """
    try:
        mode = folder.lstat().st_mode  # one look: between two, another process may make it
        is_link = stat.S_ISLNK(mode)
        if stat.S_ISDIR(mode) or (is_link and folder.is_dir()):
            return
    except (FileNotFoundError, NotADirectoryError):
        if not folder.parent.is_dir():
            raise OutputPathError(f"{folder}: there is no folder {folder.parent}", "make the folder first") from None
        return
    except (OSError, ValueError) as error:
        raise OutputPathError(f"{folder}: {getattr(error, 'strerror', None) or error}") from error
    what = "a link to no folder" if is_link else "a file, not a folder"
    raise OutputPathError(f"{folder} is {what}", hint)


def check_writable(folder: Path) -> None:
    """Try it: rights, read-only disks and odd file systems all answer, and root is told the truth, too.

    Raises:
        OutputPathError: no file can be made there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputPathError(
            f"cannot write into {folder}: {error.strerror or error}", "use a folder that you may write to"
        ) from error


def way_out(error: OSError) -> str | None:
    """What a user can do about a disk that takes nothing, as a hint."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk, or use another folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "use a folder that you may write to"
    return None


def _resolved(path: Path) -> Path:
    """Where a link leads; that of a circle of links is one of them, where `Path.resolve` fails."""
    return Path(os.path.realpath(path))


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _move(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name; unlike a rename, a link never replaces what is there."""
    if not overwrite:
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if target.exists():
                raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
        else:
            return
    temporary.replace(target)


def _exif(text: str) -> Image.Exif:
    from PIL import Image

    exif = Image.Exif()
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = _ASCII + text.encode("ascii")
    return exif


def _read_text(path: Path) -> str | None:
    """What stands where `encode_image` writes the recipe; the pixels stay unread where possible."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.format == "PNG":
                if _PNG_KEY not in image.info:
                    image.load()  # other programs put text behind the pixels
                return _as_text(image.info.get(_PNG_KEY))
            comment = image.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
            if isinstance(comment, bytes) and comment.startswith(_ASCII):
                return comment.removeprefix(_ASCII).decode("ascii", errors="replace")
            return None
    except UnidentifiedImageError as error:
        raise RecipeError(f"{path}: not a picture that can be read") from error
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # Pillow's readers meet damaged files with errors of any kind
        raise RecipeError(f"{path}: damaged: {error}") from error


def _as_text(value: object) -> str | None:
    return str(value) if isinstance(value, str) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"{digits[:40]} is larger than any number here")
    return number
