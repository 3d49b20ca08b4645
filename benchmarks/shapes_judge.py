"""How well does a model draw what it is told? A hundred prompts, drawn and judged by a detector that sees only pixels.

    python -m benchmarks.shapes_judge --model star-shapes --res 256 --json scores.json --sheet sheet.png

A prompt's seed is fixed. A thing too many or too few makes colours and shapes wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.shapes_detector import Found, detect
from benchmarks.shapes_prompts import prompts
from benchmarks.thinned import thinned
from star_cli.data.shapes import Scene, Thing

_NEAR = 0.125  # a thing is in its place when it is no further off than this share of the side: half a step of the grid
_BATCH = 10  # prompts drawn at once


@dataclass(frozen=True)
class Verdict:
    """What is right in a picture of a scene."""

    colour_ok: bool
    """There are as many things as asked for, in the colours asked for."""
    shape_ok: bool
    """There are as many things as asked for, in the shapes asked for."""
    background_ok: bool
    relation_ok: bool
    """One thing: it is in its place. More: they stand in the order asked for, in a row or a column as asked."""
    binding_ok: bool
    """Every thing, in order, has its own colour and its own shape."""
    size_ok: bool
    """Every thing, in order, has its own size."""

    @property
    def all_ok(self) -> bool:
        """Nothing is wrong."""
        return all(asdict(self).values())


def judge(image: Image.Image, scene: Scene) -> Verdict:
    """Compare a square picture of any resolution with the scene it should show."""
    seen = detect(image)
    things = _in_order(seen.things, scene)
    background_ok = seen.background == scene.background
    if len(things) != len(scene.things):
        return Verdict(False, False, background_ok, False, False, False)
    pairs = list(zip(things, scene.things, strict=True))
    return Verdict(
        colour_ok=_same_names([thing.colour for thing in things], [thing.colour for thing in scene.things]),
        shape_ok=_same_names([thing.shape for thing in things], [thing.shape for thing in scene.things]),
        background_ok=background_ok,
        relation_ok=_stand_right(things, scene.things, scene.is_column),
        binding_ok=all((found.colour, found.shape) == (wanted.colour, wanted.shape) for found, wanted in pairs),
        size_ok=all(found.size == wanted.size for found, wanted in pairs),
    )


def score(verdicts: Iterable[tuple[Scene, Verdict]]) -> dict[str, float]:
    """Percentages by kind of prompt."""
    pairs = list(verdicts)
    one = [verdict for scene, verdict in pairs if len(scene.things) == 1]
    two = [verdict for scene, verdict in pairs if len(scene.things) == 2]
    return {
        "one_colour": _percent(verdict.colour_ok for verdict in one),
        "one_shape": _percent(verdict.shape_ok for verdict in one),
        "one_background": _percent(verdict.background_ok for verdict in one),
        "one_place": _percent(verdict.relation_ok for verdict in one),
        "one_size": _percent(verdict.size_ok for verdict in one),
        "one_all": _percent(verdict.all_ok for verdict in one),
        "two_relation": _percent(verdict.relation_ok for verdict in two),
        "two_colours": _percent(verdict.colour_ok for verdict in two),
        "two_shapes": _percent(verdict.shape_ok for verdict in two),
        "two_binding": _percent(verdict.binding_ok for verdict in two),
        "two_background": _percent(verdict.background_ok for verdict in two),
        "two_sizes": _percent(verdict.size_ok for verdict in two),
        "two_all": _percent(verdict.all_ok for verdict in two),
    }


def contact_sheet(pictures: Sequence[tuple[Image.Image, Verdict]], columns: int = 10, side: int = 128) -> Image.Image:
    """All pictures in rows; a red frame where something is wrong, and a word for what."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for index, (picture, verdict) in enumerate(pictures):
        tile = picture.resize((side, side), Image.Resampling.BOX)
        pen = ImageDraw.Draw(tile)
        pen.rectangle((0, 0, side - 1, side - 1), outline="white" if verdict.all_ok else "red", width=3)
        wrong = [name.removesuffix("_ok") for name, is_ok in asdict(verdict).items() if not is_ok]
        if wrong:
            pen.rectangle((3, side - 14, side - 4, side - 4), fill="white")
            pen.text((5, side - 14), " ".join(wrong), fill="red", font_size=9)
        sheet.paste(tile, (index % columns * side, index // columns * side))
    return sheet


def _in_order(things: Sequence[Found], scene: Scene) -> list[Found]:
    """From left to right, or from top to bottom, as the scene is told."""
    return sorted(things, key=lambda thing: thing.y if scene.is_column else thing.x)


def _same_names(seen: list[str | None], wanted: list[str]) -> bool:
    return None not in seen and sorted(name or "" for name in seen) == sorted(wanted)


def _stand_right(things: Sequence[Found], wanted: Sequence[Thing], is_column: bool) -> bool:
    """Whether the thing is in its place, or things in order stand clearly apart along the right line, each its own.

    A thing is known by its colour, and by its shape where all asked for have one colour.
    """
    if len(wanted) == 1:
        return _is_near(things[0], wanted[0])
    along = [thing.y if is_column else thing.x for thing in things]
    across = [thing.x if is_column else thing.y for thing in things]
    is_in_line = max(across) - min(across) < _NEAR and min(b - a for a, b in pairwise(along)) > _NEAR
    if len({thing.colour for thing in wanted}) == 1:
        return is_in_line and [thing.shape for thing in things] == [thing.shape for thing in wanted]
    return is_in_line and [thing.colour for thing in things] == [thing.colour for thing in wanted]


def _is_near(found: Found, wanted: Thing) -> bool:
    return max(abs(found.x - wanted.x), abs(found.y - wanted.y)) <= _NEAR


def _percent(outcomes: Iterable[bool]) -> float:
    flags = list(outcomes)
    return round(100 * sum(flags) / len(flags), 1) if flags else 0.0


def _draw(pipeline: Any, pairs: Sequence[tuple[str, Scene]], options: argparse.Namespace) -> Iterator[Image.Image]:
    """Every prompt `--num` times, prompts first."""
    for start in range(0, len(pairs), _BATCH):
        batch = [prompt for prompt, _ in pairs[start : start + _BATCH]]
        for image in pipeline(
            batch, res=options.res, seed=options.seed, num=options.num, options=_sampling(pipeline, options)
        ):
            yield image.to_pil()
        print(f"\r{start + len(batch)}/{len(pairs)} prompts", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def _sampling(pipeline: Any, options: argparse.Namespace) -> Any:
    """The model's own sampling defaults, but for what the command line says."""
    said = {name: getattr(options, name) for name in ("guidance", "top_k", "top_p", "temperature")}
    return replace(pipeline.defaults, **{name: value for name, value in said.items() if value is not None})


def _read_command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes_judge", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="star-shapes", help="a model's name or folder")
    parser.add_argument("--res", type=int, help="pixels; the model's default when left out")
    parser.add_argument("--seed", type=int, default=0, help="seed of every prompt's first picture")
    parser.add_argument("--num", type=int, default=1, help="pictures of each prompt, with the seeds that follow")
    parser.add_argument("--limit", type=int, help="only so many prompts, evenly spread")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write scores and every verdict here")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here")
    return parser.parse_args(arguments)


def _report(
    scores: dict[str, float], judged: Sequence[tuple[str, Scene, Verdict]], pipeline: Any, options: argparse.Namespace
) -> dict[str, Any]:
    return {
        "model": pipeline.name,
        "res": options.res,
        "seed": options.seed,
        "num": options.num,
        "sampling": asdict(_sampling(pipeline, options)),
        "scores": scores,
        "verdicts": [{"prompt": prompt, **asdict(verdict)} for prompt, _, verdict in judged],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the prompts, judge the pictures, print percentages."""
    from star_cli.pipeline import StarPipeline

    options = _read_command_line(arguments)
    pipeline = StarPipeline.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    pairs = thinned(prompts(), options.limit)
    pictures = list(_draw(pipeline, pairs, options))
    asked = [pair for pair in pairs for _ in range(options.num)]
    judged = [(prompt, scene, judge(picture, scene)) for picture, (prompt, scene) in zip(pictures, asked, strict=True)]
    scores = score((scene, verdict) for _, scene, verdict in judged)
    for name, percent in scores.items():
        print(f"{name:16}{percent:6.1f} %")
    if options.json:
        report = _report(scores, judged, pipeline, options)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if options.sheet:
        verdicts = [verdict for _, _, verdict in judged]
        contact_sheet(list(zip(pictures, verdicts, strict=True))).save(options.sheet)


if __name__ == "__main__":
    main()
