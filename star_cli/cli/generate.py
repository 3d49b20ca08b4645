"""`star generate`: draw pictures from words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from star_cli.cli import console, options
from star_cli.cli.defaults import user_defaults
from star_cli.cli.errors import is_debug, shorten
from star_cli.cli.libraries import hushed
from star_cli.cli.output import Destination, choose_destination
from star_cli.cli.request import Request, make_request
from star_cli.errors import OptionError
from star_cli.images import check_words_fit

if TYPE_CHECKING:
    from star_cli.generated import GeneratedImage
    from star_cli.pipeline import StarPipeline

_LONGEST_REMARK = 250


def generate(
    prompt: options.PromptArg = None,
    res: options.ResOpt = None,
    model: options.ModelOpt = None,
    class_: options.ClassOpt = None,
    seed: options.SeedOpt = None,
    num: options.NumOpt = None,
    guidance: options.GuidanceOpt = None,
    top_k: options.TopKOpt = None,
    top_p: options.TopPOpt = None,
    temperature: options.TemperatureOpt = None,
    smooth: options.SmoothOpt = None,
    stable: options.StableOpt = None,
    negative: options.NegativeOpt = None,
    out: options.OutOpt = None,
    format: options.FormatOpt = None,  # noqa: A002
    device: options.DeviceOpt = None,
    dtype: options.DtypeOpt = None,
    quantize: options.QuantizeOpt = None,
    compat: options.CompatOpt = None,
    speed: options.SpeedOpt = None,
    from_image: options.FromImageOpt = None,
    force: options.ForceOpt = False,
    json: options.JsonOpt = False,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Draw pictures from words, and write their paths.

    The same call draws the same pictures: they depend on the model, the prompt, the options and the seed alone.
    Each carries its recipe; `star info` shows it, and --from-image repeats it.
    """
    flags = {
        "model": model,
        "res": res,
        "seed": seed,
        "num": num,
        "negative": negative,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "guidance": guidance,
        "top_k": top_k,
        "top_p": top_p,
        "temperature": temperature,
        "smooth": smooth,
        "stable": stable,
        "compat": compat,
        "speed": speed,
    }
    if json and out == "-":
        raise OptionError(
            "--json and --out - both write to standard output", "the picture carries its recipe: star info"
        )
    defaults = user_defaults()
    request = make_request(prompt, class_, flags, from_image, defaults)
    destination = choose_destination(out, format, request.images, force, defaults.get("format", "png"))
    for text in request.prompts:
        check_words_fit(text, request.negative, destination.format)
    for message in request.warnings:
        console.warn(message, quiet)
    if force and out == "-":
        console.warn("--force has no effect with --out -", quiet)
    with hushed(debug or is_debug(())):
        for image in _draw(request, quiet):
            _deliver(image, destination, json)


def _draw(request: Request, quiet: bool) -> Iterator[GeneratedImage]:
    """Load the model, then draw pass by pass: what is drawn is safe when a later pass is stopped."""
    with console.scales(f"loading {request.folder.name}", quiet):
        pipe = _load(request, quiet)
    for text in dict.fromkeys(filter(None, (*request.prompts, request.negative))):
        for remark in pipe.remarks(text):
            console.warn(shorten(remark, _LONGEST_REMARK), quiet)
    most = pipe.pass_size(request.sampling)
    count = _count_passes(request, most)
    for number, one in enumerate(_passes(request, most), start=1):
        title = "drawing" if count == 1 else f"drawing {number}/{count}"
        with console.scales(title, quiet) as on_scale:
            images = pipe(
                res=request.res, negative=request.negative, options=request.sampling, on_scale=on_scale, **one
            )
        yield from images


def _load(request: Request, quiet: bool) -> StarPipeline:
    from star_cli.hardware import choose_device
    from star_cli.memory import keep_pages
    from star_cli.pipeline import StarPipeline

    keep_pages()
    device = request.device
    if request.is_device_from_recipe:
        try:
            choose_device(device)
        except OptionError:
            console.warn(f"the picture was drawn on {device}, which is not here: the new one may differ", quiet)
            device = "auto"
    return StarPipeline.from_pretrained(
        request.folder.path, device=device, dtype=request.dtype, quantize=request.quantize
    )


def _count_passes(request: Request, most: int) -> int:
    """How many `_passes` gives: --num may be larger than a list of them."""
    subjects = len(request.prompts or request.classes)
    return -(-subjects // _subjects_at_once(request, most)) * -(-request.num // most)


def _subjects_at_once(request: Request, most: int) -> int:
    return max(1, most // request.num)


def _passes(request: Request, most: int) -> Iterator[dict[str, Any]]:
    """Arguments of each pass, of at most `most` pictures: all of one prompt or class, then those of the next."""
    subjects: tuple[str | int, ...] = request.prompts or request.classes
    kind = "prompts" if request.prompts else "classes"
    at_once = _subjects_at_once(request, most)
    for start in range(0, len(subjects), at_once):
        for first in range(0, request.num, most):
            num = min(most, request.num - first)
            yield {kind: subjects[start : start + at_once], "seed": request.seed + first, "num": num}


def _deliver(image: GeneratedImage, destination: Destination, json: bool) -> None:
    path = destination.save(image)
    if path is None:
        return
    if json:
        console.print_json({"path": str(path), **image.recipe})
    else:
        console.print_path(path)
