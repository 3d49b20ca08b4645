"""What a picture is called: a file name of what it shows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

LONGEST_NAME = 60
"""Characters."""
_NOT_A_NAME = re.compile(r"[^a-z0-9]+")


def subject_of(recipe: Mapping[str, Any]) -> str:
    """What a picture shows, in words."""
    return str(recipe["prompt"]) if "prompt" in recipe else f"class {recipe['class']}"


def name_of(prompt: str) -> str:
    """A file name's beginning, made of a-z, 0-9 and hyphens; "picture" for a prompt without any."""
    plain = unicodedata.normalize("NFKD", prompt[: 10 * LONGEST_NAME]).encode("ascii", errors="ignore").decode()
    name = _NOT_A_NAME.sub("-", plain.lower()).strip("-")
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME + 1].rpartition("-")[0] or name[:LONGEST_NAME]
    return name or "picture"
