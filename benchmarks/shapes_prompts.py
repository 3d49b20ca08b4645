"""The hundred prompts of the shapes benchmark, with the scene that each one describes.

python -m benchmarks.shapes_prompts        writes prompts/shapes.txt again
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

from star_cli.data.shapes import HELD_OUT_SEED, Scene, sample

PROMPTS_FILE = Path(__file__).resolve().parent.parent / "prompts" / "shapes.txt"
WANTED = {1: 60, 2: 40}  # prompts by number of things

_HEADER = f"""\
# Prompts of the shapes benchmark: {WANTED[1]} of one thing, then {WANTED[2]} of two.
# Made by `python -m benchmarks.shapes_prompts`, which walks the seeds from {HELD_OUT_SEED} on (star_cli/data/shapes.py)
# and keeps the first captions of each kind, each scene once. Training never sees these scenes, in any words.
"""


def prompts() -> list[tuple[str, Scene]]:
    """Pairs of prompt and expected scene, in the order of the file."""
    return [pair for things, wanted in WANTED.items() for pair in _first(things, wanted)]


def prompts_text() -> str:
    """What `prompts/shapes.txt` holds."""
    return _HEADER + "".join(f"{prompt}\n" for prompt, _ in prompts())


def _first(things: int, wanted: int) -> Iterator[tuple[str, Scene]]:
    """The first held-out prompts with so many things, no scene twice."""
    seen: set[Scene] = set()
    for seed in count(HELD_OUT_SEED):
        scene, caption = sample(seed)
        if len(scene.things) == things and scene not in seen:
            seen.add(scene)
            yield caption, scene
        if len(seen) == wanted:
            return


if __name__ == "__main__":
    PROMPTS_FILE.write_text(prompts_text(), encoding="utf-8")
