"""Flags and arguments, each declared once. None means: not given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Format = Literal["png", "webp", "jpeg"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["none", "int8", "fp8"]
Compat = Literal["none", "official"]
Speed = Literal["reference", "exact", "fast", "turbo"]


def whole_number(text: str) -> int:
    """Reads a flag's value."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


def number(text: str) -> float:
    """Reads a flag's value."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def model_names(incomplete: str) -> list[str]:
    """Completes a model's name."""
    from star_cli.checkpoints.known import model_paths

    return [name for name in model_paths() if name.startswith(incomplete)]


PromptArg = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT", show_default=False, help="What to draw; - reads prompts from stdin, one a line."),
]
ImageArg = Annotated[Path, typer.Argument(metavar="IMAGE", show_default=False, help="A picture that star drew.")]

ImageColumnOpt = Annotated[
    str | None,
    typer.Option("--image-column", metavar="NAME", help="Column of pictures in a dataset. Default: found by its type."),
]
CaptionColumnOpt = Annotated[
    str | None,
    typer.Option(
        "--caption-column",
        metavar="NAME",
        help="Column or JSON field of captions. Default: the first of text, caption, captions.",
    ),
]

ResOpt = Annotated[
    int | None,
    typer.Option(
        "--res",
        parser=whole_number,
        metavar="PIXELS",
        help="Side of the picture; see `star models`. Default: the model's.",
    ),
]
ModelOpt = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME|FOLDER",
        autocompletion=model_names,
        help="A model that `star models` lists, or a model folder.",
    ),
]
SeedOpt = Annotated[
    int | None,
    typer.Option(
        "--seed",
        parser=whole_number,
        metavar="N",
        help="Picture i of a prompt is drawn from seed N + i; the same seed draws the same. Default: 0.",
    ),
]
NumOpt = Annotated[
    int | None, typer.Option("--num", parser=whole_number, metavar="N", help="Pictures of each prompt. Default: 1.")
]
GuidanceOpt = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        parser=number,
        metavar="X",
        help="How strictly to follow the prompt; 0 or more. Default: the model's.",
    ),
]
TopKOpt = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        parser=whole_number,
        metavar="K",
        help="Draw from the K likeliest codes; 1 or more. Default: the model's.",
    ),
]
TopPOpt = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        parser=number,
        metavar="P",
        help="Draw from the likeliest codes that reach probability P; above 0, at most 1. Default: the model's.",
    ),
]
TemperatureOpt = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        parser=number,
        metavar="T",
        help="Variety; 0 always takes the likeliest code. Default: the model's.",
    ),
]
SmoothOpt = Annotated[
    int | None,
    typer.Option(
        "--smooth",
        parser=whole_number,
        metavar="N",
        help="Mean codes in place of drawn ones on the last N scales: cleaner, softer. Default: the model's.",
    ),
]
NegativeOpt = Annotated[
    str | None, typer.Option("--negative", metavar="PROMPT", help="What guidance leads away from. Default: nothing.")
]
ClassOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="N|NAME",
        show_default=False,
        help="What to draw with a model that draws classes: a number or an ImageNet name. May be given again.",
    ),
]
StableOpt = Annotated[
    bool | None,
    typer.Option(
        "--stable/--no-stable",
        show_default=False,
        help="Draw the last scales in several steps. Default: when the weights have the head for it.",
    ),
]
CompatOpt = Annotated[
    Compat | None,
    typer.Option(
        "--compat", help="official: random stream and rounding of the published code, one picture. Default: none."
    ),
]
SpeedOpt = Annotated[
    Speed | None,
    typer.Option(
        "--speed", help="fast and turbo leave out parts of the last scales; see docs/speed.md. Default: exact."
    ),
]
OutOpt = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FILE|DIR|-",
        help="A file, a folder (one that is there, or a name ending in /), or - for stdout. "
        "Default: this folder, named after prompt and seed, never over another file.",
    ),
]
FormatOpt = Annotated[
    Format | None,
    typer.Option("--format", help="PNG and WebP keep every pixel, JPEG does not. Default: as --out ends, else png."),
]
DeviceOpt = Annotated[
    Device | None,
    typer.Option("--device", help="Where to draw. Default: auto, the fastest there is; see `star doctor`."),
]
DtypeOpt = Annotated[
    Dtype | None, typer.Option("--dtype", help="Precision of the model. Default: auto, float32 on a CPU.")
]
QuantizeOpt = Annotated[
    Quantize | None,
    typer.Option(
        "--quantize", help="Weights of one byte, slightly other pictures: int8, or fp8 on a GPU. Default: none."
    ),
]
FromImageOpt = Annotated[
    Path | None,
    typer.Option(
        "--from-image", metavar="IMAGE", help="Repeat the recipe of this picture; what is given beside it changes it."
    ),
]
ForceOpt = Annotated[bool, typer.Option("--force", help="Overwrite files.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Write JSON, one object a line.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", help="No progress, no warnings.")]
DebugOpt = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks and the libraries' warnings (or STAR_DEBUG=1).")
]
