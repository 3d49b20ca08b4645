"""What the parts of a pass took, what they ask of the machine, and how near they are to the least that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from star_cli.evaluation.speed_machine import Ceilings, floor_seconds
from star_cli.evaluation.speed_profile import PARTS, Times, clocks_around
from star_cli.evaluation.speed_subject import Workload
from star_cli.models.drawing_cost import Cost, Drawing, Place, drawing_costs
from star_cli.models.rounding import product_dtype


def fastest_profile(workload: Workload, images: int, repeat: int) -> Times:
    """Of some passes with clocks around their parts, the one that took least: its parts add up to its total."""
    measured = []
    with clocks_around(workload.subject.pipeline, len(workload.schedule)) as clocks:
        for _ in range(repeat):
            clocks.begin()
            workload.draw(images, clocks)
            measured.append(clocks.end())
    return min(measured, key=lambda times: times.total)


def workload_costs(workload: Workload, images: int) -> dict[Place, Cost]:
    """Of every part that can be counted, the text encoder included."""
    pipe = workload.subject.pipeline
    text_tokens = 0 if pipe.text_encoder is None else pipe.text_encoder.max_tokens
    counted = drawing_costs(
        Drawing(
            transformer=pipe.transformer.config,
            vqvae=pipe.vqvae.config,
            schedule=workload.schedule,
            images=images,
            text_tokens=text_tokens,
            is_guided=workload.options.guidance > 0,
            item_size=pipe.dtype.itemsize,
            weight_size=1 if pipe.quantize else None,
            decoder_weight_size=1 if pipe.decoder.is_in_int8 else None,
            # else pictures are made of the f_hat that the scale loop left
            is_summed_again=not workload.options.smooth and workload.options.compat != "official",
        )
    )
    text = _text_cost(workload, images)
    return dict(counted) if text is None else {("text", None): text, **counted}


def _text_cost(workload: Workload, images: int) -> Cost | None:
    """Of the text encoder, whose kinds differ: counted while it reads. It is float32 whatever the dtype."""
    pipe = workload.subject.pipeline
    if pipe.text_encoder is None or workload.subject.text != "encoder":
        return None
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        pipe.tell(workload.jobs(images))
    return Cost({"head": counter.get_total_flops()}, _bytes_read(pipe.text_encoder.tower))


def _bytes_read(tower: nn.Module) -> int:
    """Of a text tower's weights. Tables are left out: a prompt looks up a few rows of them."""
    tables = {id(module.weight) for module in tower.modules() if isinstance(module, nn.Embedding)}
    return sum(weight.numel() * weight.itemsize for weight in tower.parameters() if id(weight) not in tables)


def workload_floors(costs: Mapping[Place, Cost], workload: Workload, ceilings: Ceilings) -> dict[Place, float]:
    """Seconds less than which no part can take; `costs` are of the same workload."""
    pipe = workload.subject.pipeline
    weights = product_dtype(pipe.quantize, pipe.device)
    return {place: floor_seconds(cost, ceilings, workload.dtype, weights) for place, cost in costs.items()}


def describe_profile(
    times: Times,
    costs: Mapping[Place, Cost],
    workload: Workload,
    batch: Mapping[str, Any],
    ceilings: Ceilings,
) -> dict[str, Any]:
    """Parts and scales with what they took, what they cost and how near the floor they are.

    Unknown floors are None: nothing is counted of the stable head, nor of what no clock was around.
    """
    schedule, floors = workload.schedule, workload_floors(costs, workload, ceilings)

    def row(places: Sequence[Place]) -> dict[str, Any]:
        """Of several places together."""
        seconds = sum(times.seconds.get(place, 0.0) for place in places)
        known = [place for place in places if place in costs]
        floor = sum(floors[place] for place in known) if known else None
        return {
            "ms": 1e3 * seconds,
            "flops": sum(costs[place].flops for place in known),
            "bytes": sum(costs[place].bytes for place in known),
            "floor_ms": None if floor is None else 1e3 * floor,
            "floor_percent": None if floor is None or not seconds else 100 * floor / seconds,
        }

    places = [*dict.fromkeys([*times.seconds, *costs])]
    parts = [part for part in PARTS if any(name == part for name, _ in places)]
    scales = []
    for scale, side in enumerate(schedule.sides):
        here = [place for place in places if place[1] == scale]
        by_part = {part: 1e3 * times.seconds[part, scale] for part in PARTS if (part, scale) in times.seconds}
        scales.append({"side": side, "tokens": side * side, **row(here), "parts_ms": by_part})
    return {
        "images": batch["images"],
        "total_s": times.total,
        "undisturbed_s": batch["min_s"],
        "floor_s": sum(floors.values()),
        "parts": [{"part": part, **row([place for place in places if place[0] == part])} for part in parts],
        "scales": scales,
    }
