"""Records of jobs as they end, and of pictures that tell their own job though no journal tells of them."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

from star_cli.batch.journal import Record
from star_cli.batch.plan import Job, job_hash
from star_cli.images import FORMATS, read_recipe


def record_of(job: Job, file: str, data: bytes, seconds: float) -> Record:
    """The record of a finished job.

    Args:
        job: that was done.
        file: name of its image inside the batch's folder.
        data: the whole file.
        seconds: that drawing and writing it took; 0 for an image that was found.
    """
    return Record(
        job=job.hash,
        status="done",
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        seconds=round(seconds, 3),
        size_bytes=len(data),
        res=job.row.setting.res,
        line=job.row.line,
        subject=_shortened(job.row.subject),
        seed=job.seed,
    )


def failure_of(job: Job, error: str, seconds: float) -> Record:
    """The record of a job that failed."""
    return Record(
        job=job.hash,
        status="failed",
        seconds=round(seconds, 3),
        res=job.row.setting.res,
        line=job.row.line,
        subject=_shortened(job.row.subject),
        seed=job.seed,
        error=error,
    )


def job_of_image(path: Path, copy: int = 0) -> str | None:
    """Hash of the job that a picture's own recipe tells; None for what is damaged, or not a picture of star.

    Args:
        path: of the picture.
        copy: how many of the same are before it in the input.
    """
    from PIL import Image

    if (format := FORMATS.get(path.suffix.lower())) is None:  # noqa: A001
        return None
    try:
        recipe = read_recipe(path)
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            image.verify()  # the checksums of a PNG
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            image.load()  # every pixel is there
    except Exception:  # Pillow's readers meet damaged files with errors of any kind
        return None
    try:
        return job_hash(recipe, format, copy)
    except (TypeError, ValueError):
        return None


def _shortened(subject: str | int) -> str | int:
    """A subject for people."""
    return f"{subject[:200]}..." if isinstance(subject, str) and len(subject) > 200 else subject


def record_of_image(job: str, file: str, path: Path) -> Record | None:
    """The record of a picture that tells its own job; None when its name or its recipe is none of ours.

    Args:
        job: hash of its job.
        file: its name inside the batch's folder.
        path: where it lies.
    """
    recipe, data = read_recipe(path), path.read_bytes()
    record = Record(
        job=job,
        status="done",
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        res=recipe.get("res", 0),
        subject=_shortened(recipe.get("prompt", recipe.get("class", ""))),
        seed=recipe.get("seed", 0),
    )
    try:
        return Record.from_line(record.to_line())  # a journal with it can be read
    except ValueError:
        return None
