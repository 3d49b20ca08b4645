"""`star finetune`: go on with a finished model, at a larger resolution or on other data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star_cli.cli import options
from star_cli.cli.train import (
    BatchOpt,
    DataOpt,
    RateOpt,
    ResumeOpt,
    SetOpt,
    StepsOpt,
    ThreadsOpt,
    make,
    stage_changes,
)

FromOpt = Annotated[int, typer.Option("--from", metavar="PIXELS", help="A resolution the model draws.")]
ToOpt = Annotated[int, typer.Option("--to", metavar="PIXELS", help="The resolution to learn.")]
RunOpt = Annotated[
    Path | None,
    typer.Option(
        "--run", help="Folder for checkpoints and previews; a run there goes on. Default: runs/NAME-finetune."
    ),
]
OutOpt = Annotated[
    Path | None, typer.Option("--out", help="Model folder to write. Default: NAME-PIXELS in the current folder.")
]


def finetune(
    start: FromOpt = 256,
    target: ToOpt = 512,
    model: options.ModelOpt = None,
    data: DataOpt = None,
    out: OutOpt = None,
    run: RunOpt = None,
    steps: StepsOpt = None,
    rate: RateOpt = None,
    batch_size: BatchOpt = None,
    changes: SetOpt = None,
    resume: ResumeOpt = "auto",
    threads: ThreadsOpt = None,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Teach a model a larger resolution, or other data; write the model folder and print its path.

    With no option: star-shapes, which ships and whose data is drawn here, from 256 to 512 pixels. Stopped runs go on
    where they were: call it again with the same folders.
    """
    from star_cli.checkpoints.known import SELF_SUFFICIENT, find_model
    from star_cli.training.finetune import default_run, finetune_recipe

    base = find_model(model or SELF_SUFFICIENT)
    wanted = [*(changes or ()), *stage_changes("finetune", steps, rate)]
    recipe = finetune_recipe(base, start, target, data=data, changes=wanted)
    if batch_size is not None:
        recipe = recipe.with_batch_size("finetune", batch_size)
    target_folder = out or Path(f"{base.name}-{target}")
    make(recipe, f"finetune of {base.name}", run or default_run(recipe), target_folder, resume, threads, quiet)
