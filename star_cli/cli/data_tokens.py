"""`star data tokens`: pictures and captions as tokens and text features, made once for many epochs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from star_cli.cli import console, options
from star_cli.cli.data_options import DataArg, refuse_endless
from star_cli.cli.defaults import user_defaults
from star_cli.cli.errors import is_debug
from star_cli.cli.libraries import hushed
from star_cli.errors import OptionError

if TYPE_CHECKING:
    from star_cli.checkpoints.folder import ModelFolder
    from star_cli.data.cache import TokenCache
    from star_cli.models.schedule import ScaleSchedule

NAMED = 3
"""Unreadable pictures that a warning names."""

OutOpt = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", show_default=False, help="Folder of the cache; one that is there goes on."),
]
ResOpt = Annotated[
    list[int] | None,
    typer.Option(
        "--res",
        parser=options.whole_number,
        metavar="PIXELS",
        show_default=False,
        help="Side of the pictures; may be given again. Default: the model's.",
    ),
]
CropOpt = Annotated[
    Literal["centre", "random"],
    typer.Option("--crop", help="Where the square is taken; random: once for each picture."),
]
FeaturesOpt = Annotated[
    bool,
    typer.Option("--features/--no-features", help="Keep the captions' features, or their words alone."),
]
FeatureDtypeOpt = Annotated[
    Literal["float32", "float16"] | None,
    typer.Option(
        "--feature-dtype",
        show_default=False,
        help="float32: the loss that the text encoder gives; float16: half the size. Default: float32.",
    ),
]
BatchSizeOpt = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        show_default=False,
        help="Pictures in one pass. Default: 16 at 256 pixels, fewer where they are larger.",
    ),
]
WorkersOpt = Annotated[
    int, typer.Option("--workers", min=0, metavar="N", help="Processes that read pictures ahead; 0: none.")
]
DeviceOpt = Annotated[
    options.Device | None,
    typer.Option("--device", show_default=False, help="Where to compute. Default: auto, the fastest there is."),
]


def tokens(
    where: DataArg,
    out: OutOpt,
    model: options.ModelOpt = None,
    res: ResOpt = None,
    image_column: options.ImageColumnOpt = None,
    caption_column: options.CaptionColumnOpt = None,
    crop: CropOpt = "centre",
    features: FeaturesOpt = True,
    feature_dtype: FeatureDtypeOpt = None,
    batch_size: BatchSizeOpt = None,
    workers: WorkersOpt = 0,
    device: DeviceOpt = None,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Turn pictures into token maps and captions into text features, once, and write the folder's path.

    Training from that cache gives the loss of training from the pictures. A stopped command goes on where it was: call
    it again. Unreadable pictures are left out and recorded; a cache of another model or of other pictures is refused.
    """
    refuse_endless(where)
    if feature_dtype is not None and not features:
        console.warn("--feature-dtype has no effect with --no-features", quiet)
    with hushed(debug or is_debug(())):
        from star_cli.checkpoints.known import SHIPPED, find_model
        from star_cli.data.cache_build import build_cache
        from star_cli.data.cache_plan import CacheOptions, check_cache_folder
        from star_cli.data.open import open_source
        from star_cli.hardware import choose_device

        check_cache_folder(out)
        usual = user_defaults()
        folder = find_model(model or usual.get("model", SHIPPED))
        schedules = _schedules(folder, res)
        if features and folder.text_encoder is None:
            raise OptionError(f"model {folder.name} draws classes and has no text encoder", "use --no-features")
        place, _ = choose_device(device or usual.get("device", "auto"))
        source = open_source(where, image_column=image_column, caption_column=caption_column)
        how = CacheOptions(
            crop=crop,
            features=(feature_dtype or "float32") if features else "none",
            batch_size=batch_size or 0,
            workers=workers,
        )
        text_encoder = folder.load_text_encoder(place) if features else None
        with console.counts(quiet) as on_progress:
            cache = build_cache(source, out, folder.load_vqvae(place), text_encoder, schedules, how, on_progress)
    _warn_of_skipped(cache, quiet)
    console.print_path(out)


def _schedules(folder: ModelFolder, resolutions: list[int] | None) -> dict[int, ScaleSchedule]:
    """Those of the resolutions asked for.

    Raises:
        OptionError: the model does not know one.
    """
    wanted = resolutions or [folder.default_resolution]
    for resolution in wanted:
        if resolution not in folder.schedules:
            known = " or ".join(map(str, sorted(folder.schedules)))
            raise OptionError(
                f"model {folder.name} has tokens at {known} pixels, not {resolution}", "see `star models`"
            )
    return {resolution: folder.schedules[resolution] for resolution in wanted}


def _warn_of_skipped(cache: TokenCache, quiet: bool) -> None:
    for resolution in sorted(cache.sides):
        skipped = cache.skipped(resolution)
        if skipped:
            named = "; ".join(f"{one.name}: {one.reason}" for one in skipped[:NAMED])
            more = f"; and {len(skipped) - NAMED:,} more, see cache.json" if len(skipped) > NAMED else ""
            console.warn(
                f"{len(skipped):,} of {len(cache):,} pictures left out at {resolution} px: {named}{more}", quiet
            )
