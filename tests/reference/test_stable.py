"""Stable sampling equals the published refinement loop: step plan, the loop itself, the head alone, its training."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from star_cli.checkpoints import layouts
from star_cli.generation import sampler, stable
from star_cli.generation.options import SamplingOptions
from star_cli.models.config import TransformerConfig
from star_cli.models.schedule import ScaleSchedule
from star_cli.training.stable import stable_loss
from tests.reference.golden import (
    Golden,
    build_quantizer,
    build_transformer,
    build_vqvae,
    compare_gradients,
    find,
    golden,
    schedule_of,
    text_of,
    uncovered,
)

CASES = ["star_sampler_new", "star_sampler_1024", "star_sampler_1024_14scales"]
LOOP = ("fhat", "raw", "step_raw", "step_conf", "step_mask", "h", "img")
TRAINED = "star_sampler_new"
HEARD = {"official": "first_image", "per_sample": "per_image"}


def schedules() -> dict[str, list[dict[str, object]]]:
    path = find("mask_schedule.json")
    assert path is not None
    facts = json.loads(path.read_text())
    return {"table": facts["table"], "published": facts["published"]}


def test_every_step_fixes_as_many_positions_as_published() -> None:
    compared = 0
    for row in schedules()["table"]:
        if row["mode"] == "arccos":  # the models use no other
            assert stable.reveal_counts(int(str(row["steps"])), int(str(row["patch_size"])) ** 2) == row["counts"], row
            compared += 1
    assert compared > 50


def test_the_released_schedules_are_planned_as_published() -> None:
    for row in schedules()["published"]:
        version = "1024" if row["sample_version"] == "1024" else "new"
        config = TransformerConfig(depth=1, width=8, heads=1, levels=14, stable_head=True, stable_version=version)
        plan = stable.plan_steps(config, int(str(row["scale_index"])), int(str(row["pn"])) ** 2)
        assert [step.count for step in plan] == row["counts"]
        assert [step.uses_base_head for step in plan].count(True) == row["base_head_steps"]
        assert [step.uses_base_head for step in plan] == sorted((s.uses_base_head for s in plan), reverse=True)
        assert [step.is_random for step in plan] == [index < 5 for index in range(len(plan))]


class Recorded:
    """Hands out the recorded draws and confidences in turn, and keeps what the loop made of them."""

    def __init__(self, case: Golden, schedule: ScaleSchedule, first_refined: int):
        self.case = case
        self.places = self._in_turn(schedule, first_refined)
        self.place = ""

    def _in_turn(self, schedule: ScaleSchedule, first_refined: int) -> Iterator[str]:
        loops = {loop["scale"]: len(loop["steps"]) for loop in self.case.facts["loop"]}
        assert min(loops) == first_refined
        for scale in range(len(schedule)):
            yield from (f"{scale}/{step}" for step in range(loops[scale])) if scale in loops else (str(scale),)

    def choose(self, probabilities: Tensor) -> Tensor:
        self.place = next(self.places)
        tokens = self.case[f"in/draw/{self.place}"]
        likely = probabilities.gather(-1, tokens[..., None])[..., 0]
        assert bool((likely > 0).all()), "the published draw is one that may be drawn"
        self.case.compare(f"step_conf/{self.place}", likely, "sureness")
        return tokens

    def begin_step(self, positions: int) -> None:
        pass

    def confidences(self, like: Tensor) -> Tensor:
        return self.case[f"in/rand/{self.place}"]


@pytest.mark.parametrize("name", CASES)
def test_refinement_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden(name)
    schedule, quantizer = schedule_of(case), build_quantizer(case, "state_vae/")
    model = build_transformer(case, cross_attention_rows="first_image")
    recorded = Recorded(case, schedule, model.config.stable_from)
    facts = case.facts
    options = SamplingOptions(guidance=facts["cfg"], top_k=facts["top_k"] or 9999, top_p=facts["top_p"] or 1.0)
    base: list[Tensor] = []
    refined: list[Tensor] = []
    masks: list[Tensor] = []
    assert model.stable is not None
    model.head.register_forward_hook(lambda _module, _given, result: base.append(result))
    model.stable.head.register_forward_hook(lambda _module, _given, result: refined.append(result[:, 1:]))

    fix = stable._fix

    def watched(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        tokens, fixed = fix(*arguments)  # type: ignore[arg-type]
        masks.append(fixed)
        return tokens, fixed

    monkeypatch.setattr(stable, "_fix", watched)
    drawn = sampler.draw(model, quantizer, text_of(case, [0]), text_of(case, [1]), schedule, options, recorded)
    assert next(recorded.places, None) is None
    first = model.config.stable_from
    for scale in range(first):
        case.compare(f"raw/{scale}", base[scale], "logits")
    left, fixings = iter(refined), iter(masks)
    ordinary = iter(base[first:])
    for loop in facts["loop"]:
        scale = loop["scale"]
        uses_base = [step["source"] == "base" for step in loop["steps"]]
        of_base = next(ordinary) if any(uses_base) else None
        for step, is_base in enumerate(uses_base):
            logits = of_base if is_base else next(left)
            assert logits is not None
            case.compare(f"step_raw/{scale}/{step}", logits, "logits")
            for _ in loop["steps"][step]["picks"]:
                fixed = next(fixings)
            case.compare(f"step_mask/{scale}/{step}", fixed.to(torch.uint8), "tokens")
        with torch.no_grad():
            codes = quantizer.look_up(drawn.token_maps[scale].flatten(1), schedule.sides[scale])
        case.compare(f"h/{scale}", codes, "latent")
    assert next(left, None) is next(fixings, None) is next(ordinary, None) is None
    with torch.no_grad():
        latents = list(quantizer.decode_scales([token_map.flatten(1) for token_map in drawn.token_maps], schedule))
    for scale, f_hat in enumerate(latents):
        case.compare(f"fhat/{scale}", f_hat, "latent")
    if case.recorded("img"):
        with torch.no_grad():
            image = build_vqvae(case, "state_vae/").decode(drawn.f_hat)
        case.compare("img", (image + 1) / 2, "image")
    case.finish(*(name for name in LOOP if case.recorded(name)))


@pytest.mark.parametrize("name", CASES)
def test_the_head_alone(name: str) -> None:
    case = golden(name)
    model, schedule = build_transformer(case), schedule_of(case)
    table = model.rotation(schedule)
    assert table is not None
    assert model.stable is not None
    last = table[schedule.slice(len(schedule) - 1)]
    with torch.no_grad():
        logits = model.stable(case["in/sample_feature"], case["in/sample_prev"], torch.cat([table[:1], last]))
    case.compare("sample_logits", logits, "logits")
    case.finish("sample_logits")


@pytest.mark.parametrize("variant", HEARD)
def test_training_of_the_head(variant: str) -> None:
    case = golden(TRAINED)
    schedule, quantizer = schedule_of(case), build_quantizer(case, "state_vae/")
    model = build_transformer(case, cross_attention_rows=HEARD[variant])
    first = schedule.offsets[model.config.stable_from]
    visible = case["in/train/mask"].bool()  # (B, l)
    prompted = model.prompt(text_of(case, [0, 1], "in/train"))
    with torch.no_grad():  # the blocks are frozen
        hidden = model.hidden_states(prompted, case["in/train/x"], schedule)[:, first:]
    tokens = case["in/train/idx"][:, first:]
    codes = quantizer.codebook(tokens).detach() * visible[..., None]
    refined = range(model.config.stable_from, len(schedule))
    logits = model.stable_logits(codes, hidden, prompted, schedule, refined)
    case.compare(f"train/{variant}/logits", logits, "logits")
    # hidden tokens compete with one more class of logit 0, visible ones are that class, of logit 10
    seen = visible.float()[..., None]
    wider = torch.cat([logits * (1 - seen), 10 * seen], dim=-1)
    targets = torch.where(visible, logits.shape[-1], tokens)
    losses = F.cross_entropy(wider.flatten(0, 1), targets.flatten(), reduction="none").view_as(tokens)
    loss = losses.sum(1).mean() / schedule.length
    case.compare(f"train/{variant}/loss", loss[None], "loss")
    ours = stable_loss(logits, tokens, visible, schedule.length, "published")
    case.compare(f"train/{variant}/loss", ours[None], "loss")
    loss.backward()
    compare_gradients(case, f"train/{variant}/grad", model, layouts.STAR)
    case.finish(f"train/{variant}")


@pytest.mark.parametrize("name", CASES)
def test_no_recorded_output_of_stable_sampling_is_left_uncompared(name: str) -> None:
    assert uncovered(golden(name), *LOOP, "sample_logits", "train") == []
