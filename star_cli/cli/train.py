"""`star train`: make models from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from star_cli.cli import console, options

app = typer.Typer(help="Train models from nothing.", no_args_is_help=True)

RecipeOpt = Annotated[str, typer.Option("--recipe", help="A recipe that ships (star-shapes), or a TOML file.")]
OutOpt = Annotated[Path, typer.Option("--out", help="Model folder to write when all stages are done.")]
RunOpt = Annotated[
    Path | None,
    typer.Option("--run", help="Folder for checkpoints and previews; a run there goes on. Default: runs/NAME."),
]
ThreadsOpt = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: all cores.")]


@app.callback()
def train() -> None:
    """Train models from nothing."""


@app.command("all")
def train_all(
    out: OutOpt,
    recipe: RecipeOpt = "star-shapes",
    run: RunOpt = None,
    threads: ThreadsOpt = None,
    quiet: options.QuietOpt = False,
) -> None:
    """Train every stage of a recipe (CLIP, VQVAE, transformer, finetune) and write the model folder.

    Stopped runs go on where they were: call it again with the same folders.
    """
    import torch

    from star_cli.checkpoints.writing import check_target
    from star_cli.training.export import export_model
    from star_cli.training.recipe import find_recipe, make_model, read_recipe

    path = find_recipe(recipe)
    plan = read_recipe(path)
    check_target(out)
    if threads:
        torch.set_num_threads(threads)
    with console.training(quiet) as panel:
        made = make_model(plan, run or Path("runs") / plan.name, panel.on_progress, panel.on_cache)
    folder = export_model(made, out, path.stem)
    console.print_path(folder.path)
