"""The STAR transformer equals the published one: teacher-forced forward, loss, gradients, and greedy drawing."""

import pytest
import torch
import torch.nn.functional as F

from star_cli.checkpoints import layouts
from star_cli.generation import sampler
from star_cli.generation.options import SamplingOptions
from star_cli.models.transformer import StarTransformer
from tests.reference.golden import (
    Golden,
    available,
    build_quantizer,
    build_transformer,
    build_vqvae,
    golden,
    schedule_of,
    text_of,
)

FORWARD = ["rope", "no_l2", "shared_aln", "abs_pos", "no_cross"]
INFER = ["256style", "512style", "abs_pos_no_l2", "shared_aln"]
LOGITS, GUIDED, HIDDEN, LATENT, IMAGE, LOSS = 2e-4, 5e-4, 2e-4, 2e-5, 5e-5, 1e-5
GRADIENT, GRADIENT_RELATIVE = 2e-5, 1e-4
ROWS = {"b1_official": ("first_image", [0]), "b3_official": ("first_image", [0, 1, 2]), "b3_per_sample": ("per_image", [0, 1, 2])}


def compare_gradients(case: Golden, prefix: str, model: StarTransformer) -> int:
    """Every recorded gradient, in our names and shapes; how many there were."""
    recorded = case.state(f"out/{prefix}/grad/")
    official_of = {}
    for key, value in recorded.items():
        (ours,) = layouts.from_official({key: value}, layouts.TRANSFORMER)
        official_of[ours] = key
    parameters = dict(model.named_parameters())
    for ours, key in official_of.items():
        gradient = parameters[ours].grad
        assert gradient is not None, ours
        case.compare(f"{prefix}/grad/{key}", gradient.reshape(recorded[key].shape), GRADIENT, GRADIENT_RELATIVE)
    return len(recorded)


@pytest.mark.parametrize("variant", ROWS)
@pytest.mark.parametrize("name", FORWARD)
def test_teacher_forced_forward(name: str, variant: str):
    case = golden(f"star_forward_{name}")
    schedule = schedule_of(case)
    heard, rows = ROWS[variant]
    if f"out/{variant}/logits" not in case:
        pytest.skip("not recorded")
    model = build_transformer(case, cross_attention_rows=heard)
    hidden: list[torch.Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _given, result: hidden.append(result))
    logits = model(model.prompt(text_of(case, rows)), case["in/x"][rows], schedule)
    case.compare(f"{variant}/logits", logits, LOGITS)
    for index, states in enumerate(hidden):
        if f"out/{variant}/hidden/{index}" in case:
            case.compare(f"{variant}/hidden/{index}", states, HIDDEN)
    if f"out/{variant}/loss" in case:
        loss = F.cross_entropy(logits.flatten(0, 1), case["in/idx"][rows].flatten())
        case.compare(f"{variant}/loss", loss.reshape(case[f"out/{variant}/loss"].shape), LOSS)
        loss.backward()
        assert compare_gradients(case, variant, model) > 0


@pytest.mark.parametrize(
    ("name", "prefix", "changes"),
    [("rope", "no_logit_norm", {"logit_norm": False}), ("shared_aln", "no_lvl_in_input", {"level_in_input": False})],
)
@pytest.mark.parametrize("variant", ROWS)
def test_forward_with_one_option_changed(name: str, prefix: str, changes: dict, variant: str):
    case = golden(f"star_forward_{name}")
    heard, rows = ROWS[variant]
    model = build_transformer(case, cross_attention_rows=heard, **changes)
    with torch.no_grad():
        logits = model(model.prompt(text_of(case, rows)), case["in/x"][rows], schedule_of(case))
    case.compare(f"{prefix}/{variant}/logits", logits, LOGITS)


@pytest.mark.parametrize(("variant", "heard"), [("official", "first_image"), ("per_sample", "per_image")])
def test_forward_with_tokens_dropped(variant: str, heard: str):
    case = golden("star_forward_token_drop")
    model = build_transformer(case, cross_attention_rows=heard)
    keep = case["in/keep"].bool()
    logits = model(model.prompt(text_of(case)), case["in/x"], schedule_of(case), keep)
    if f"out/{variant}/logits" in case:
        case.compare(f"{variant}/logits", logits, LOGITS)
    # with dropping the published code divides by the number of kept tokens and sums over the batch
    loss = F.cross_entropy(logits.flatten(0, 1), case["in/idx"][:, keep].flatten()) * len(logits)
    case.compare(f"{variant}/loss", loss.reshape(case[f"out/{variant}/loss"].shape), LOSS)
    loss.backward()
    assert compare_gradients(case, variant, model) > 0


def infer_variants(case: Golden) -> list[str]:
    return [key for key in case.facts["variants"] if "<" not in key]


@pytest.mark.parametrize("name", INFER)
@torch.inference_mode()
def test_greedy_drawing(name: str, monkeypatch: pytest.MonkeyPatch):
    case = golden(f"star_infer_{name}")
    schedule, quantizer = schedule_of(case), build_quantizer(case, "state_vae/")
    for variant in infer_variants(case):
        images = 2 if variant.startswith("b2") else 1
        guidance = 0.0 if "cfg0" in variant else 4.0
        model = build_transformer(case, cross_attention_rows="per_image" if "per_sample" in variant else "first_image")
        raw: list[torch.Tensor] = []
        guided: list[torch.Tensor] = []
        draw_tokens = sampler.draw_tokens
        monkeypatch.setattr(sampler, "draw_tokens", lambda logits, *rest: (guided.append(logits), draw_tokens(logits, *rest))[1])
        logits_of = model.logits
        monkeypatch.setattr(model, "logits", lambda *given: (raw.append(logits_of(*given)), raw[-1])[1])
        drawn = sampler.draw(
            model,
            quantizer,
            text_of(case, list(range(images))),
            text_of(case, [2] * images),
            schedule,
            SamplingOptions(guidance=guidance, temperature=0),
            [torch.Generator() for _ in range(images)],
        )
        monkeypatch.undo()
        for scale, f_hat in enumerate(quantizer.decode_scales([m.flatten(1) for m in drawn.token_maps], schedule)):
            case.compare(f"{variant}/idx/{scale}", drawn.token_maps[scale].flatten(1), 0)
            case.compare(f"{variant}/logits/{scale}", guided[scale], GUIDED)
            if f"out/{variant}/raw/{scale}" in case and guidance:
                case.compare(f"{variant}/raw/{scale}", raw[scale], LOGITS)
            case.compare(f"{variant}/fhat/{scale}", f_hat, LATENT)
        assert torch.equal(drawn.f_hat, f_hat)
        if available("vae_base"):
            image = build_vqvae(case, "state_vae/").decode(drawn.f_hat)
            case.compare(f"{variant}/img", (image + 1) / 2, IMAGE)
