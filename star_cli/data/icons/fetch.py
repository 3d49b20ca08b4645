"""The icon set and the words for it: fetched with npm once, checked, and kept as one small archive that loads quickly.

The packages are 100 MB of JSON unpacked. What is needed of them, one SVG for each icon without skin tones and a line
of facts for each emoji, goes into a zip file of a few MB, of which processes read single icons.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from star_cli.checkpoints.known import cache_root
from star_cli.data.icons.archive import OpenArchive
from star_cli.errors import DataError, DownloadError

_FORMAT = 1  # of the archive; part of its name
_SET_FILE = "set.json"
_SKIN = re.compile(r"-(?:medium-)?(?:light|dark|medium)$")  # "waving-hand-medium-dark" is a variant of "waving-hand"
_PART = 1 << 20


@dataclass(frozen=True)
class Package:
    """A pinned npm package."""

    name: str
    version: str
    file: str
    """What `npm pack` calls it."""
    sha256: str
    licence: str
    """Licence and owner, for model cards."""

    @property
    def spec(self) -> str:
        """Name and version as npm wants them."""
        return f"{self.name}@{self.version}"


ICONS = Package(
    "@iconify-json/fluent-emoji",
    "1.2.7",
    "iconify-json-fluent-emoji-1.2.7.tgz",
    "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    "Fluent Emoji, MIT licence, Microsoft Corporation",
)
WORDS = Package(
    "emojibase-data",
    "17.0.0",
    "emojibase-data-17.0.0.tgz",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "emojibase-data, MIT licence, Miles Johnson",
)


@dataclass(frozen=True)
class Emoji:
    """What the words package says of one emoji."""

    label: str
    tags: tuple[str, ...]
    group: int
    subgroup: int


class IconSet:
    """An archive of icons, read as needed. Picklable: only its path travels.

    Args:
        path: the archive.
    Raises:
        DataError: it is not one.
    """

    def __init__(self, path: Path):
        self.path = path
        hint = "delete it: it is made again when needed" if path.parent == icons_root() else _hint(ICONS)
        self._archive = OpenArchive(path, hint)
        try:
            facts = json.loads(self._archive.read(_SET_FILE))
            self._facts: dict[str, Any] = {name: facts[name] for name in ("fingerprint", "sources", "icons", "emoji")}
        except (KeyError, TypeError, ValueError) as error:  # a DataError is a ValueError
            raise DataError(f"{path} is not an archive of icons", hint) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """The path is enough."""
        return IconSet, (self.path,)

    @property
    def fingerprint(self) -> str:
        """Changes with the packages."""
        return str(self._facts["fingerprint"])

    @property
    def sources(self) -> list[str]:
        """Names, versions and licences of the packages, for model cards."""
        return [str(source) for source in self._facts["sources"]]

    @cached_property
    def icons(self) -> tuple[str, ...]:
        """Names of all icons, skin tones left out."""
        return tuple(self._facts["icons"])

    @cached_property
    def emoji(self) -> tuple[Emoji, ...]:
        """What is said of each emoji."""
        return tuple(
            Emoji(label, tuple(tags), group, subgroup) for label, tags, group, subgroup in self._facts["emoji"]
        )

    def svg(self, icon: str) -> str:
        """An icon as an SVG document.

        Raises:
            DataError: there is no such icon.
        """
        try:
            return self._archive.read(f"{icon}.svg").decode()
        except KeyError:
            raise DataError(f"the icon set has no icon {icon}") from None


def icons_root() -> Path:
    """Folder of everything made from the icons, inside the user's cache."""
    return cache_root() / "icons"


def open_icons(where: Path | None = None, on_message: Callable[[str], None] | None = None) -> IconSet:
    """The icon set, fetched and prepared on first use.

    Args:
        where: a package file (.tgz), an `icons.json`, a folder with either, or an archive made here (.zip); None: the
            pinned package from the cache, or through npm. The words are looked for beside it (`emojibase-data*.tgz` or
            `data.json`), then in the cache, then through npm.
        on_message: told what takes long.
    Raises:
        DataError: nothing of that kind is there.
        DownloadError: npm is needed and missing, or fails, or gives another file than was pinned.
    """
    tell = on_message or (lambda _: None)
    if where is not None and not where.exists():
        raise DataError(f"no file or folder {where}", _hint(ICONS))
    if where is not None and where.suffix == ".zip" and not where.is_dir():
        return IconSet(where)
    if where is None and (pinned := _archive_path(ICONS.sha256, WORDS.sha256)).is_file():
        return IconSet(pinned)  # the packages themselves are no longer needed
    icons, words = _sources(where, tell)
    path = _archive_path(_hash(icons), _hash(words))
    if not path.is_file():
        tell("reading the icons")
        _write_archive(path, icons, words)
    return IconSet(path)


def _archive_path(icons: str, words: str) -> Path:
    """Where the archive made from files with these hashes lies."""
    return icons_root() / f"set-{hashlib.sha256(f'{_FORMAT} {icons} {words}'.encode()).hexdigest()[:16]}.zip"


def _sources(where: Path | None, tell: Callable[[str], None]) -> tuple[Path, Path]:
    """Files that hold the icons and the words."""
    if where is None:
        return _fetch(ICONS, tell), _fetch(WORDS, tell)
    folder = where if where.is_dir() else where.parent
    icons = where
    if where.is_dir():
        found = _first(folder, "icons.json", "package/icons.json", "*fluent-emoji*.tgz")
        if found is None:
            raise DataError(f"{where} holds neither icons.json nor a package of icons (.tgz)", _hint(ICONS))
        icons = found
    return icons, _first(folder, "data.json", "en/data.json", "emojibase-data*.tgz") or _fetch(WORDS, tell)


def _first(folder: Path, *patterns: str) -> Path | None:
    return next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)


def _hint(package: Package) -> str:
    return (
        f"run `npm pack {package.spec}` where npm is, and put {package.file} into {icons_root()} "
        "(or beside what --icons names)"
    )


def _fetch(package: Package, tell: Callable[[str], None]) -> Path:
    """A pinned package in the cache, whole and as pinned."""
    path = icons_root() / package.file
    if not path.is_file():
        tell(f"fetching {package.spec}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _npm_pack(package, Path(folder))
            _check(package, Path(folder) / package.file)
            (Path(folder) / package.file).replace(path)
    _check(package, path)
    return path


def _npm_pack(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError(f"{package.spec} is not here, and npm, which fetches it, is not installed", _hint(package))
    command = [npm, "pack", package.spec, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    except subprocess.TimeoutExpired:
        raise DownloadError(f"npm did not fetch {package.spec} within ten minutes", _hint(package)) from None
    if done.returncode or not (folder / package.file).is_file():
        said = done.stderr.strip().splitlines()
        raise DownloadError(
            f"npm could not fetch {package.spec}: {said[-1] if said else done.returncode}", _hint(package)
        )


def _check(package: Package, path: Path) -> None:
    found = _hash(path)
    if found != package.sha256:
        raise DownloadError(
            f"{path}: hash is {found[:8]}..., expected {package.sha256[:8]}...", f"delete it; {_hint(package)}"
        )


def _hash(path: Path) -> str:
    told = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            told.update(part)
    return told.hexdigest()


def _write_archive(path: Path, icons: Path, words: Path) -> None:
    drawn = _read_json(icons, "package/icons.json")
    said = _read_json(words, "package/en/data.json")
    try:
        documents = dict(_documents(drawn))
        emoji = [
            (row["label"], row.get("tags", []), row.get("group", -1), row.get("subgroup", -1))
            for row in said
            if "label" in row
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{icons} or {words} has another layout than expected: {error!r}", _hint(ICONS)) from error
    facts = {
        "fingerprint": path.stem.removeprefix("set-"),
        "sources": [_source(icons, ICONS), _source(words, WORDS)],
        "icons": sorted(documents),
        "emoji": emoji,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_SET_FILE, json.dumps(facts))
            for icon, document in documents.items():
                archive.writestr(f"{icon}.svg", document)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path, member: str) -> Any:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))
        with tarfile.open(path) as archive:
            file = archive.extractfile(member)
            if file is None:
                raise ValueError(f"{member} is a folder")
            return json.load(file)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a package with {member}: {error}", _hint(ICONS)) from error


def _documents(drawn: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and SVG document of each icon that is no skin-tone variant of another."""
    icons = drawn["icons"]
    for icon, own in icons.items():
        if _SKIN.sub("", icon) in icons and _SKIN.search(icon):
            continue
        left, top, width, height = (
            own.get(name, drawn.get(name, default))
            for name, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        yield (
            icon,
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{own["body"]}</svg>',
        )


def _source(path: Path, package: Package) -> str:
    """What is said of a source: the pinned package's licence, or that it is the user's own file."""
    if path.suffix == ".tgz" and _hash(path) == package.sha256:
        return f"{package.spec} ({package.licence})"
    return f"{path.name} (given by the user)"
