"""What a batch is to draw: the checked rows of its input, and of each row its images, named and told apart by hash.

Rows are kept, images are made when they are asked for: a hundred thousand lines start as fast as ten.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from star_cli.asked import (
    SAMPLING,
    check_kind,
    check_texts,
    checked_numbers,
    checked_resolution,
    precision_of,
    sampling_of,
)
from star_cli.batch.rows import InputKind, Problem, RawRow, read_rows
from star_cli.batch.template import NameTemplate, check_name, numbered, with_free_stems
from star_cli.checkpoints.folder import ModelFolder
from star_cli.classes import find_class
from star_cli.errors import BatchInputError, OptionError
from star_cli.generation.options import SamplingOptions, check_compat
from star_cli.images import FORMATS, SUFFIXES, check_words_fit
from star_cli.names import name_of

_NOT_DECISIVE = {"model", "device", "dtype", "quantize", "star_version"}
"""Keys of a recipe that are no part of a job's identity: the model counts by its hash, and a folder begun on one device
may be finished on another."""
_OF_A_PASS = ("res", *SAMPLING)
_MOST_IMAGES = 10**9
"""Of a batch: each job's name and identity are kept in memory while it runs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the images of one pass have in common."""

    res: int
    sampling: SamplingOptions


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the input, checked."""

    line: int
    subject: str | int
    """Prompt or class."""
    negative: str
    seed: int
    num: int
    setting: Setting
    format: str | None
    """None where the template decides."""
    out: str | None
    """A file's name inside the folder; None where the template decides."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image to draw."""

    index: int
    """Place among all images of the input, from 1."""
    row: Row
    seed: int
    hash: str
    """Of all that decides the file, SHA-256 in hex."""
    file: str
    """Its name inside the folder, unless that is taken there; / between folders."""
    copy: int = 0
    """How many jobs before it in the input draw the very same."""

    @property
    def format(self) -> str:
        """Of the file: "png", "webp" or "jpeg"."""
        return FORMATS[PurePosixPath(self.file).suffix.lower()]


class Plan:
    """All jobs of one input.

    Args:
        rows: of the input.
        folder: the model.
        names: of files.
    """

    def __init__(self, rows: list[Row], folder: ModelFolder, names: NameTemplate):
        self.rows = rows
        self.folder = folder
        self.names = names
        self._total = sum(row.num for row in rows)

    def __len__(self) -> int:
        return self._total

    def jobs(self) -> Iterator[Job]:
        """Every job, in the order of the input. The same input gives the same jobs, whoever asks."""
        subject_key = "prompt" if self.folder.class_count is None else "class"
        taken: set[str] = set()  # names in small letters: not every system tells A from a
        counts: dict[str, int] = {}
        seen: dict[bytes, int] = {}
        index = 0
        for row in self.rows:
            # in the order of no key: identity is made of them sorted
            recipe = {subject_key: row.subject, "res": row.setting.res, "model_hash": self.folder.hash}
            recipe |= row.setting.sampling.to_dict()
            if subject_key == "prompt":
                recipe["negative"] = row.negative
            slug = name_of(row.subject if isinstance(row.subject, str) else f"class {row.subject}")
            for number in range(row.num):
                index += 1
                recipe["seed"] = seed = row.seed + number
                name_format = row.format or self.names.format
                first = job_hash(recipe, name_format)
                copy = seen.get(key := bytes.fromhex(first[:32]), 0)
                seen[key] = copy + 1
                own = first if copy == 0 else job_hash(recipe, name_format, copy)
                base = self._name(row, slug, index, number, seed, own)
                yield Job(index, row, seed, own, _unique(base, taken, counts), copy)

    def _name(self, row: Row, slug: str, index: int, number: int, seed: int, own: str) -> str:
        if row.out is not None:
            return row.out if row.num == 1 else _with_end(row.out, f"-{seed}")
        name = self.names.name(
            {
                "index": index,
                "line": row.line,
                "number": number + 1,
                "seed": seed,
                "res": row.setting.res,
                "slug": slug,
                "model": name_of(self.folder.name),
                "hash": own[:12],
            }
        )
        if row.format is not None and row.format != self.names.format:
            name = str(PurePosixPath(name).with_suffix(SUFFIXES[row.format]))
        return name


def job_hash(recipe: Mapping[str, Any], format: str, copy: int = 0) -> str:  # noqa: A002 - Pillow's word for it
    """Identity of a job: SHA-256 of the canonical JSON of all that decides its file.

    Args:
        recipe: of the image, as planned or as a picture carries it.
        format: of the file.
        copy: how many of the same are before it in the input.
    """
    decisive: dict[str, Any] = {name: value for name, value in recipe.items() if name not in _NOT_DECISIVE}
    if decisive.get("speed") == "exact":  # so that pictures of before this option keep their identity
        del decisive["speed"]
    if decisive.get("smooth") == 0:
        del decisive["smooth"]
    decisive["format"] = format
    if copy:
        decisive["copy"] = copy
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_plan(
    file: Iterable[bytes], kind: InputKind, folder: ModelFolder, defaults: Mapping[str, Any], names: NameTemplate
) -> Plan:
    """Read and check the whole input.

    Args:
        file: its lines.
        kind: of the input.
        folder: the model.
        defaults: what holds for a row that does not say: negative, seed, num, res, format, options of the draw.
        names: of files.
    Raises:
        BatchInputError: lines that cannot be drawn, all of them; or nothing to draw.
        OptionError: defaults that no row can be drawn with.
    """
    reader = _Settler(folder, defaults, names.format)
    reader.setting({})  # what is wrong with the flags is no line's fault
    checked_numbers(defaults)
    rows: list[Row] = []
    problems: list[Problem] = []
    for raw in read_rows(file, kind):
        try:
            if isinstance(raw, Problem):
                problems.append(raw)
            else:
                rows.append(reader.row(raw, kind))
        except OptionError as error:
            problems.append(Problem(raw.line, str(error)))
    if problems:
        lines = "a line" if len(problems) == 1 else f"{len(problems):,} lines"
        told = tuple((problem.line, problem.message) for problem in problems)
        raise BatchInputError(f"{lines} of the input cannot be drawn", "nothing was drawn: correct the input", told)
    if not rows:
        raise BatchInputError("there is nothing to draw in the input", "write one prompt a line")
    if (images := sum(row.num for row in rows)) > _MOST_IMAGES:
        raise BatchInputError(f"a batch is at most {_MOST_IMAGES:,} images, not {images:,}", "give a smaller --num")
    return Plan(rows, folder, names)


class _Settler:
    """Makes rows of what lines say; settings that are equal are one object."""

    def __init__(self, folder: ModelFolder, defaults: Mapping[str, Any], format: str):  # noqa: A002
        self._folder = folder
        self._format = format
        self._defaults = {"negative": "", "seed": 0, "num": 1, **defaults}
        self._settings: dict[tuple[tuple[str, Any], ...], Setting] = {}

    def row(self, raw: RawRow, kind: InputKind) -> Row:
        """One row, checked.

        Raises:
            OptionError: it cannot be drawn.
        """
        said = raw.values
        if kind == "text" and self._folder.class_count is not None:
            said = {"class": said["prompt"]}
        values = {**self._defaults, **said}
        if "prompt" in said and "class" in said:
            raise OptionError("a prompt and a class are given: one of them")
        texts, named = [said[name]] if (name := "prompt") in said else [], [said["class"]] if "class" in said else []
        if not named:
            check_texts(texts, values["negative"])
        check_kind(self._folder, texts, named, values["negative"])
        values |= checked_numbers(values)
        format, out = self._file(said)  # noqa: A001 - as the column
        if texts:
            check_words_fit(texts[0], values["negative"], format or self._format)
        subject = texts[0] if texts else find_class(named[0], self._folder.transformer.classes)
        return Row(
            raw.line, subject, values["negative"], values["seed"], values["num"], self.setting(said), format, out
        )

    def setting(self, said: Mapping[str, Any]) -> Setting:
        """Resolution and options of a row.

        Raises:
            OptionError: they cannot be used.
        """
        key = tuple((name, said[name]) for name in _OF_A_PASS if name in said)
        if key not in self._settings:
            values = {**self._defaults, **said}
            sampling = sampling_of(values, self._folder)
            check_compat(sampling, 1, precision_of(values))
            self._settings[key] = Setting(checked_resolution(values.get("res"), self._folder), sampling)
        return self._settings[key]

    def _file(self, said: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """Format and file's name that a row asks for."""
        format = said.get("format")  # noqa: A001
        if format is not None:
            format = "jpeg" if format.lower() == "jpg" else format.lower()  # noqa: A001
            if format not in SUFFIXES:
                raise OptionError(f"format must be {', '.join(SUFFIXES)}, not {said['format']}")
        out = said.get("out")
        if out is None:
            return format, None
        named = FORMATS.get(PurePosixPath(out).suffix.lower())
        if format is not None and named not in (None, format):
            raise OptionError(f"out {out} is to be a {named} file, but format says {format}")
        format = format or named or self._format  # noqa: A001
        out = out if named else f"{out}{SUFFIXES[format]}"
        check_name(out, "out")
        return format, with_free_stems(out)


def name_key(name: str) -> str:
    """Equal for names that some system takes for one: small and capital letters, accents in one sign or in two."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


def _unique(name: str, taken: set[str], counts: dict[str, int]) -> str:
    """The name, or the first of its kind that no job before it has."""
    key = name_key(name)
    if key not in taken:
        taken.add(key)
        return name
    count = counts.get(key, 1)
    while True:
        count += 1
        other = numbered(name, count)
        if (key_of_other := name_key(other)) not in taken:
            counts[key] = count
            taken.add(key_of_other)
            return other


def _with_end(name: str, end: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{path.stem}{end}{path.suffix}"))
