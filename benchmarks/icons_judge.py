"""How well does a model draw what it is told? Held-out prompts, judged by a network trained on renders alone.

    python -m benchmarks.icons_judge train --judge judge.safetensors --steps 6000
    python -m benchmarks.icons_judge real  --judge judge.safetensors
    python -m benchmarks.icons_judge score --judge judge.safetensors --model FOLDER --res 256 --json scores.json

`real` judges true renders of the same prompts: what the scores of a perfect model would be. The network sees other
seeds than any model, in other sizes, colours and places, and shares no weights with the models.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.icons_network import MOST, SIDE, Eye, EyeConfig, Seen
from benchmarks.icons_prompts import WANTED, Asked, prompts, synonyms
from benchmarks.thinned import thinned
from star_cli.data.icons.backgrounds import BACKGROUNDS
from star_cli.data.icons.catalogue import DEFAULT_OBJECTS, Catalogue, open_catalogue
from star_cli.data.icons.compose import compose_tensor
from star_cli.data.icons.layout import IconScene
from star_cli.data.icons.scenes import HELD_OUT_SEED, MIXES, SceneMix, scene
from star_cli.errors import OptionError
from star_cli.evaluation.frechet import FeatureStatistics, frechet_distance

_OWN_SEEDS = 500_000_000
"""First seed of the judge's training scenes, with held-out pairs or without; no model and no prompt uses them."""
_KINDS = (*WANTED, "synonym")
_MIX = SceneMix(plain=0.15, ground=0.25, posed=0.1, count=0.2, pair=0.25, group=0.05, jitter=0.08)
_REAL_SEEDS = 700_000_000
_BATCH = 64
_RATE = 2e-3


# -- training ------------------------------------------------------------


@dataclass(frozen=True)
class Lesson:
    """A batch to learn from."""

    pixels: Tensor
    """(B, 3, H, W), -1..1."""
    things: Tensor
    """(B, N), 1 where the object is there."""
    number: Tensor
    """(B,), things in all, less one."""
    ground: Tensor
    """(B,), index of the background."""


def lesson(catalogue: Catalogue, step: int, batch_size: int = _BATCH) -> Lesson:
    """The batch of a step: half of it with held-out pairs, which the judge must know."""
    rng = np.random.default_rng([2024, step])
    seeds = _OWN_SEEDS + step * batch_size + np.arange(batch_size)
    shown = [scene(catalogue, _MIX, int(seed) + HELD_OUT_SEED * int(seed % 2)) for seed in seeds]
    pixels = torch.stack([_disturb(compose_tensor(catalogue, one, 128), rng) for one in shown])
    index = {key: number for number, key in enumerate(catalogue.keys)}
    things = torch.zeros(batch_size, len(index))
    for row, one in enumerate(shown):
        things[row, [index[key] for key in one.keys]] = 1
    number = torch.tensor([len(one.items) - 1 for one in shown])
    return Lesson(pixels, things, number, torch.tensor([BACKGROUNDS.index(one.background) for one in shown]))


def _disturb(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Another frame, other colours, a blur, noise: what a good drawing may differ in."""
    side = pixels.shape[-1]
    cut = [int(rng.integers(0, side // 12)) for _ in range(4)]
    pixels = pixels[:, cut[0] : side - cut[1], cut[2] : side - cut[3]]
    rough = int(rng.integers(40, SIDE + 1)) if rng.random() < 0.4 else SIDE
    pixels = F.interpolate(pixels[None], (rough, rough), mode="bilinear", antialias=True)
    pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear")[0]
    gain = torch.from_numpy(rng.uniform(0.88, 1.12, (3, 1, 1))).float()
    shift = torch.from_numpy(rng.uniform(-0.1, 0.1, (3, 1, 1))).float()
    noise = torch.from_numpy(rng.normal(0, rng.uniform(0, 0.05), pixels.shape)).float()
    return (pixels * gain + shift + noise).clamp(-1, 1)


def loss_of(seen: Seen, batch: Lesson) -> Tensor:
    """What is there (each object by itself, those that are there weighing as much as those that are not), how many,
    and on what.
    """
    each = F.binary_cross_entropy_with_logits(seen.things, batch.things, reduction="none")
    there = (each * batch.things).sum() / batch.things.sum()
    absent = (each * (1 - batch.things)).sum(1).mean()
    choice = F.cross_entropy(seen.things, batch.things / batch.things.sum(1, keepdim=True))
    return (
        there
        + absent
        + choice
        + F.cross_entropy(seen.number, batch.number)
        + F.cross_entropy(seen.ground, batch.ground)
    )


def train(catalogue: Catalogue, path: Path, steps: int, minutes: float, device: str, say: Callable[[str], None]) -> Eye:
    """Train a judge and write it to `path`; one that is there goes on where it was.

    Args:
        catalogue: the objects it learns.
        path: its file; how far it is stands beside it, in a file that ends in `.state`.
        steps: of the whole training.
        minutes: stop after so long; call again to go on.
        device: where.
        say: told of progress.
    Raises:
        OptionError: the file holds a judge of other objects.
    """
    torch.manual_seed(0)
    eye = Eye.load(path) if path.exists() else Eye(EyeConfig(catalogue.keys, BACKGROUNDS))
    if (eye.config.keys, eye.config.grounds) != (catalogue.keys, BACKGROUNDS):
        raise OptionError(f"the judge in {path} was trained on other objects or backgrounds", "name a new file")
    eye.train().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(eye.parameters(), lr=_RATE, weight_decay=0.02)
    step, end = _resume(optimiser, path), time.monotonic() + 60 * minutes
    while step < steps and time.monotonic() < end:
        for group in optimiser.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / 100) * max(0.01, 1 - step / steps)
        batch = _to(lesson(catalogue, step), device)
        with torch.autocast(device, torch.bfloat16):
            seen = eye(batch.pixels.contiguous(memory_format=torch.channels_last))
            loss = loss_of(seen, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eye.parameters(), 5.0)
        optimiser.step()
        if step % 50 == 0:
            is_alone = batch.things.sum(1) == 1
            right = (seen.things.argmax(1) == batch.things.argmax(1))[is_alone].float().mean()
            ground = (seen.ground.argmax(1) == batch.ground).float().mean()
            say(f"step {step}/{steps}  loss {loss.item():.3f}  one object {right:.2f}  ground {ground:.2f}")
        step += 1
        if step % 200 == 0:
            _keep(eye, optimiser, step, path)
    _keep(eye, optimiser, step, path)
    return eye.eval()


def _resume(optimiser: torch.optim.Optimizer, path: Path) -> int:
    state_path = path.with_suffix(".state")
    if not (path.exists() and state_path.exists()):
        return 0
    state = torch.load(state_path, weights_only=True)
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _to(batch: Lesson, device: str) -> Lesson:
    return Lesson(*(getattr(batch, name).to(device) for name in ("pixels", "things", "number", "ground")))


def _keep(eye: Eye, optimiser: torch.optim.Optimizer, step: int, path: Path) -> None:
    eye.save(path)
    torch.save({"optimiser": optimiser.state_dict(), "step": step}, path.with_suffix(".state"))


# -- judging ------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What is right in a picture."""

    things_ok: bool
    """The likeliest objects are those asked for: the likeliest one of one, the likeliest two of two."""
    number_ok: bool
    """As many things as asked for."""
    background_ok: bool
    seen: tuple[str, ...]
    """Keys of the likeliest objects, as many as were asked for."""


def judge(eye: Eye, pixels: Tensor, asked: Sequence[Asked]) -> tuple[list[Verdict], Tensor]:
    """Verdicts on pictures (B, 3, H, W), -1..1, and their features (B, D)."""
    with torch.inference_mode():
        seen = eye(pixels.float())
    verdicts = []
    for row, wanted in enumerate(asked):
        best = seen.things[row].topk(len(wanted.counts)).indices.tolist()
        found = tuple(eye.config.keys[index] for index in best)
        verdicts.append(
            Verdict(
                things_ok=set(found) == set(wanted.counts),
                number_ok=int(seen.number[row].argmax()) + 1 == min(wanted.number, MOST),
                background_ok=eye.config.grounds[int(seen.ground[row].argmax())] == wanted.background,
                seen=found,
            )
        )
    return verdicts, seen.features


def scores(judged: Iterable[tuple[Asked, Verdict]]) -> dict[str, float]:
    """Percentages by kind of prompt, of the kinds that there are."""
    pairs = list(judged)
    found: dict[str, float] = {}

    def note(name: str, kinds: tuple[str, ...], is_right: Callable[[Verdict], bool]) -> None:
        flags = [is_right(verdict) for asked, verdict in pairs if asked.kind in kinds]
        if flags:
            found[name] = round(100 * sum(flags) / len(flags), 1)

    note("one_object", ("one",), lambda verdict: verdict.things_ok)
    note("two_objects", ("two",), lambda verdict: verdict.things_ok)
    note("background", ("one", "two", "counted"), lambda verdict: verdict.background_ok)
    note("number", ("counted",), lambda verdict: verdict.number_ok)
    note("number_and_object", ("counted",), lambda verdict: verdict.number_ok and verdict.things_ok)
    note("two_common", ("two_common",), lambda verdict: verdict.things_ok)
    note("over", ("over",), lambda verdict: verdict.things_ok)
    note("number_common", ("counted_common",), lambda verdict: verdict.number_ok)
    note("number_and_object_common", ("counted_common",), lambda verdict: verdict.number_ok and verdict.things_ok)
    note("synonym", ("synonym",), lambda verdict: verdict.things_ok)
    return found


def real_pictures(
    catalogue: Catalogue, mix: SceneMix, first_seed: int, count: int, resolution: int
) -> Iterator[Tensor]:
    """True renders, each (3, R, R)."""
    for seed in range(first_seed, first_seed + count):
        yield compose_tensor(catalogue, scene(catalogue, mix, seed), resolution)


def statistics_of(eye: Eye, pictures: Iterable[Tensor]) -> FeatureStatistics:
    """Mean and covariance of the features of pictures."""
    rest, found = iter(pictures), None
    with torch.inference_mode():
        while batch := list(islice(rest, _BATCH)):
            features = eye(torch.stack(batch).float()).features  # (n, D)
            found = found or FeatureStatistics(features.shape[1])
            found.add(features)
    if found is None:
        raise ValueError("there are no pictures")
    return found


def drawn(
    pipeline: Any, words: Sequence[str], options: argparse.Namespace, say: Callable[[str], None]
) -> Iterator[Tensor]:
    """A picture of each prompt as the pipeline draws it, (3, R, R), -1..1; all from the same seed."""
    sampling = _sampling(pipeline, options)
    for start in range(0, len(words), options.batch):
        some = list(words[start : start + options.batch])
        for image in pipeline(some, res=options.res, seed=options.seed, options=sampling):
            pixels = torch.from_numpy(np.array(image.to_pil().convert("RGB"))).permute(2, 0, 1)
            yield pixels.float() / 127.5 - 1
        say(f"{start + len(some)}/{len(words)}")


def _sampling(pipeline: Any, options: argparse.Namespace) -> Any:
    """The model's own sampling defaults, but for what the command line says."""
    said = {name: getattr(options, name) for name in ("guidance", "top_k", "top_p", "temperature", "smooth")}
    return replace(pipeline.defaults, **{name: value for name, value in said.items() if value is not None})


# -- the command line ------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a judge, judge true renders, or judge a model."""
    options = _read_command_line(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.command == "train":
        catalogue = open_catalogue(options.icons, options.objects)
        catalogue.renders.prepare([thing.icon for thing in catalogue.objects], 128)
        train(catalogue, options.judge, options.steps, options.minutes, options.device, _say)
        return
    eye = Eye.load(options.judge)
    whole = open_catalogue(options.icons, len(eye.config.keys))
    if whole.keys != eye.config.keys:
        sys.exit("the judge was trained on other objects: train it anew")
    known = Catalogue(whole.objects[: options.objects or None], whole.renders)
    asked = _asked(known, options)
    if options.command == "real":
        pictures: Iterable[Tensor] = (_true_picture(known, one, options.res) for one in asked)
        more: Iterable[Tensor] = ()
        facts: dict[str, Any] = {"model": "true renders"}
    else:
        from star_cli.pipeline import StarPipeline

        pipeline = StarPipeline.from_pretrained(options.model, device=options.device, dtype=options.dtype)
        pictures = drawn(pipeline, [one.prompt for one in asked], options, _say)
        words = [caption for caption, _ in _real_captions(known, _mix(options), options.frechet)]
        more = drawn(pipeline, words, options, _say)
        facts = {"model": pipeline.name, "sampling": asdict(_sampling(pipeline, options))}
    judged = list(_judged(eye, pictures, asked))
    report = facts | {"res": options.res, "seed": options.seed, "objects": len(known.objects), "scores": scores(judged)}
    if options.frechet:
        report["scores"] |= _distances(eye, known, more, options)
    for name, value in report["scores"].items():
        print(f"{name:26}{value:8.2f}")
    if options.json:
        rows = [{"kind": one.kind, "prompt": one.prompt, **asdict(verdict)} for one, verdict in judged]
        options.json.write_text(json.dumps(report | {"verdicts": rows}, indent=2) + "\n", encoding="utf-8")


def _asked(catalogue: Catalogue, options: argparse.Namespace) -> list[Asked]:
    """The prompts of the kinds asked for, or so many of them."""
    asked = prompts(catalogue, options.prompts_seed) + synonyms(catalogue, options.prompts_seed)
    asked = [one for one in asked if one.kind in options.kinds]
    return thinned(asked, options.limit)


def _true_picture(catalogue: Catalogue, asked: Asked, resolution: int) -> Tensor:
    """A render of what was asked for, the first seed that gives it; a synonym's thing stands alone."""
    return compose_tensor(catalogue, asked.scene or _alone(catalogue, asked), resolution)


def _alone(catalogue: Catalogue, asked: Asked) -> IconScene:
    (key,) = asked.counts
    mix = SceneMix()
    only = Catalogue((catalogue.by_key[key],), catalogue.renders)
    for seed in range(10_000):
        shown = scene(only, mix, seed)
        if shown.background == asked.background:
            return shown
    raise AssertionError(asked)


def _judged(eye: Eye, pictures: Iterable[Tensor], asked: Sequence[Asked]) -> Iterator[tuple[Asked, Verdict]]:
    for picture, wanted in zip(pictures, asked, strict=True):
        (verdict,), _ = judge(eye, picture[None], [wanted])
        yield wanted, verdict


def _real_captions(catalogue: Catalogue, mix: SceneMix, count: int) -> Iterator[tuple[str, IconScene]]:
    from star_cli.data.icons.captions import caption

    for seed in range(_REAL_SEEDS, _REAL_SEEDS + count):
        shown = scene(catalogue, mix, seed)
        yield caption(catalogue, shown, random.Random(seed)), shown


_FRECHET_MIX = SceneMix(plain=0.3, ground=0.3, posed=0.1, count=0.12, pair=0.16, group=0.02)


def _mix(options: argparse.Namespace) -> SceneMix:
    return MIXES[options.mix] if options.mix else _FRECHET_MIX


def _distances(
    eye: Eye, catalogue: Catalogue, pictures: Iterable[Tensor], options: argparse.Namespace
) -> dict[str, float]:
    """Fréchet distances to true renders, of other true renders (the floor) and of the drawn pictures."""
    count, mix = options.frechet, _mix(options)
    real = statistics_of(eye, real_pictures(catalogue, mix, _REAL_SEEDS, count, options.res))
    other = statistics_of(eye, real_pictures(catalogue, mix, _REAL_SEEDS + count, count, options.res))
    found = {"frechet_floor": frechet_distance(real, other)}
    if options.command == "score":
        found["frechet"] = frechet_distance(real, statistics_of(eye, pictures))
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read_command_line(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.icons_judge", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("command", choices=("train", "real", "score"))
    parser.add_argument("--judge", type=Path, required=True, help="file of the trained judge")
    parser.add_argument("--icons", type=Path, help="icon package; the cache's when left out")
    parser.add_argument("--objects", type=int, default=DEFAULT_OBJECTS, help="first objects to train on or ask for")
    parser.add_argument("--steps", type=int, default=6000, help="of the judge's training, of 64 pictures each")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop training after so long; call again to go on")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--model", default="star-icons", help="a model's name or folder")
    parser.add_argument("--res", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0, help="seed of every picture")
    parser.add_argument("--prompts-seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=_KINDS, help="kinds of prompts; default: all")
    parser.add_argument("--limit", type=int, help="only so many prompts, evenly spread")
    parser.add_argument("--batch", type=int, default=8, help="pictures drawn at once")
    parser.add_argument("--frechet", type=int, default=0, help="pictures for the Fréchet distance; 0: leave it out")
    parser.add_argument("--mix", choices=MIXES, help="of scenes for that distance; default: one or several things")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--smooth", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help="write scores and every verdict here")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
