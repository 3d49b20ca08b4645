"""A tiny icon set in the package's layout, drawn by hand here: no icon of the real set is in this repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from star_cli.data.icons.catalogue import Catalogue, open_catalogue


def _disc(colour: str, radius: float = 12, y: float = 16) -> str:
    return f'<circle cx="16" cy="{y}" r="{radius}" fill="{colour}"/>'


def _box(colour: str, height: float = 24) -> str:
    return f'<rect x="4" y="{28 - height}" width="24" height="{height}" fill="{colour}"/>'


BODIES = {
    "cat-face": _disc("#f0a030"),
    "cat": _disc("#f0a030", 8),
    "dog-face": _box("#906040"),
    "mouse-face": _disc("#b0b0b8", 9),
    "red-apple": _disc("#e02020"),
    "green-apple": _disc("#40b040"),
    "bread": _box("#d0a060", 12),
    "grapes": _disc("#8040c0", 10),
    "house": _box("#c06030"),
    "hospital": _box("#80a0d0"),
    "rocket": '<path d="M16 2L26 30H6Z" fill="#d03050"/>',
    "sailboat": '<path d="M16 2L30 24H2Z" fill="#3060d0"/>',
    "snow-capped-mountain": '<path d="M16 6L30 28H2Z" fill="#806050"/>',
    "ghost": _disc("#fafafa"),
    "smiling-face-with-smiling-eyes": _disc("#ffd040"),
    "key": '<rect x="2" y="14" width="28" height="4" fill="#f0d020"/>',
    # not in the vocabulary: by rule
    "oyster": _disc("#909090", 7),
    "two-oclock": _disc("#ffffff"),
    # variants that are folded, and names that only look like variants
    "waving-hand": _disc("#ffcc00", 6),
    "waving-hand-dark": _disc("#604020", 6),
    "waving-hand-medium-light": _disc("#e0b080", 6),
}

EMOJI: list[dict[str, Any]] = [
    {"label": "cat face", "tags": ["animal", "kitty"], "group": 3, "subgroup": 34},
    {"label": "oyster", "tags": ["mollusc", "pearl", "diving", "animal"], "group": 3, "subgroup": 38},
    {"label": "ring", "tags": ["pearl"], "group": 7, "subgroup": 65},
    {"label": "two o\u2019clock", "tags": ["2:00"], "group": 5, "subgroup": 58},
]


@pytest.fixture(scope="session")
def icon_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `icons.json` and `data.json`."""
    folder = tmp_path_factory.mktemp("icons")
    icons = {name: {"body": body} for name, body in BODIES.items()}
    (folder / "icons.json").write_text(json.dumps({"prefix": "tiny", "icons": icons, "width": 32, "height": 32}))
    (folder / "data.json").write_text(json.dumps(EMOJI))
    return folder


@pytest.fixture
def catalogue(icon_folder: Path) -> Catalogue:
    """All objects of the tiny set."""
    pytest.importorskip("resvg_py")
    return open_catalogue(icon_folder, objects=0)
