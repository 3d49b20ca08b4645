"""`star train`: make models from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from star_cli.cli import console, options
from star_cli.cli.training_panel import training_panel

if TYPE_CHECKING:
    from star_cli.training.making import Resume
    from star_cli.training.recipe import Recipe

app = typer.Typer(help="Train models from nothing.", no_args_is_help=True)

RecipeOpt = Annotated[
    str,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="A recipe that ships (star-shapes, star-icons), or a TOML file."
    ),
]
OutOpt = Annotated[Path, typer.Option("--out", help="Model folder to write when all stages are done.")]
StageOutOpt = Annotated[Path | None, typer.Option("--out", help="Model folder to write when the stage is done.")]
RunOpt = Annotated[
    Path | None,
    typer.Option("--run", help="Folder for checkpoints and previews; a run there goes on. Default: runs/NAME."),
]
DataOpt = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="WHERE", help="What to learn from: see `star data check`. Default: what the recipe says."
    ),
]
ModelOpt = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME|FOLDER", help="Take the parts that are not trained here from this model."),
]
StepsOpt = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.")]
RateOpt = Annotated[float | None, typer.Option("--lr", help="Learning rate after warm-up.")]
BatchOpt = Annotated[int | None, typer.Option("--batch-size", min=1, help="Images in a batch.")]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field of the recipe: star.loop.steps=100. Repeatable."),
]
ResumeOpt = Annotated[
    Literal["auto", "never"],
    typer.Option("--resume", help="Go on with a run that is in the folder, or refuse to touch it."),
]
ThreadsOpt = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: all cores.")]

_TOO_LARGE = "make the model smaller (width, depth, channels); `star doctor` tells how much memory is free"


@app.callback()
def train() -> None:
    """Train models from nothing."""


@app.command("all")
def train_all(
    out: OutOpt,
    recipe: RecipeOpt = "star-shapes",
    run: RunOpt = None,
    data: DataOpt = None,
    changes: SetOpt = None,
    resume: ResumeOpt = "auto",
    threads: ThreadsOpt = None,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Train every stage of a recipe (CLIP, VQVAE, transformer, finetune) and write the model folder.

    Stopped runs go on where they were: call it again with the same folders.
    """
    from star_cli.training.recipe_file import find_recipe, read_recipe

    path = find_recipe(recipe)
    plan = read_recipe(path, changes or (), data=data)
    make(plan, path.stem, run or Path("runs") / plan.name, out, resume, threads, quiet)


@app.command("clip")
def train_clip(
    recipe: RecipeOpt = "star-shapes",
    run: RunOpt = None,
    data: DataOpt = None,
    steps: StepsOpt = None,
    rate: RateOpt = None,
    changes: SetOpt = None,
    resume: ResumeOpt = "auto",
    threads: ThreadsOpt = None,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Train stage 0 alone: a small CLIP, whose text tower reads the prompts. Prints the run's folder."""
    wanted = [*(changes or ()), *stage_changes("clip", steps, rate)]
    _make_stage("clip", recipe, run, data, wanted, None, resume, threads, quiet)


@app.command("vqvae")
def train_vqvae(
    recipe: RecipeOpt = "star-shapes",
    run: RunOpt = None,
    data: DataOpt = None,
    steps: StepsOpt = None,
    rate: RateOpt = None,
    batch_size: BatchOpt = None,
    changes: SetOpt = None,
    resume: ResumeOpt = "auto",
    threads: ThreadsOpt = None,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Train stage 1 alone: the multi-scale VQVAE. Prints the run's folder."""
    wanted = [*(changes or ()), *stage_changes("vqvae", steps, rate)]
    if batch_size is not None:
        wanted.append(f"vqvae.stage.batch_size={batch_size}")
    _make_stage("vqvae", recipe, run, data, wanted, None, resume, threads, quiet)


@app.command("star")
def train_star(
    recipe: RecipeOpt = "star-shapes",
    run: RunOpt = None,
    data: DataOpt = None,
    model: ModelOpt = None,
    out: StageOutOpt = None,
    steps: StepsOpt = None,
    rate: RateOpt = None,
    batch_size: BatchOpt = None,
    changes: SetOpt = None,
    resume: ResumeOpt = "auto",
    threads: ThreadsOpt = None,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Train stage 2 alone: the transformer. Tokenizer and text encoder come from the run's folder, or from --model.

    Prints the model folder when --out names one, else the run's folder.
    """
    wanted = [*(changes or ()), *stage_changes("star", steps, rate)]
    _make_stage("star", recipe, run, data, wanted, batch_size, resume, threads, quiet, model=model, out=out)


@app.command("show")
def show(
    recipe: RecipeOpt = "star-shapes",
    data: DataOpt = None,
    changes: SetOpt = None,
    debug: options.DebugOpt = False,
) -> None:
    """Print a whole recipe, each field explained; a start for one of your own."""
    from star_cli.training.recipe_file import find_recipe, read_recipe

    typer.echo(read_recipe(find_recipe(recipe), changes or (), data=data).to_toml(), nl=False)


def make(
    recipe: Recipe,
    recipe_name: str,
    folder: Path,
    out: Path | None,
    resume: Resume,
    threads: int | None,
    quiet: bool,
    stage: str | None = None,
) -> None:
    """Train all stages of a recipe, or one; print the model folder where one is written, else the run's folder."""
    from star_cli.checkpoints.writing import check_target
    from star_cli.training.distributed import is_main
    from star_cli.training.export import export_model
    from star_cli.training.making import Maker
    from star_cli.training.memory import memory_in_words

    if out is not None:
        check_target(out)
    prepare(threads)
    with training_panel(quiet or not is_main()) as panel:
        maker = Maker(recipe, folder, panel.on_progress, panel.on_cache, panel.on_note, resume)
        for each in recipe.stages if stage is None else (stage,):
            with memory_in_words(f"stage {each} was prepared", _TOO_LARGE):
                maker.train(each)
    if is_main():
        with memory_in_words("the model was put together", _TOO_LARGE):
            made = folder if out is None else export_model(maker.made(), out, recipe_name).path
        console.print_path(made)


def _make_stage(
    stage: str,
    recipe_name: str,
    run: Path | None,
    data: str | None,
    changes: list[str],
    batch_size: int | None,
    resume: Resume,
    threads: int | None,
    quiet: bool,
    model: str | None = None,
    out: Path | None = None,
) -> None:
    """Train one stage in its run folder; store a model folder when one is asked for."""
    from star_cli.training.making import other_sections
    from star_cli.training.recipe_file import find_recipe, read_recipe

    path = find_recipe(recipe_name)
    folder = run or Path("runs") / read_recipe(path, changes, data=data).name
    recipe = read_recipe(path, changes, other_sections(folder, stage), data).alone(stage, model, batch_size)
    make(recipe, path.stem, folder, out, resume, threads, quiet, stage)


def prepare(threads: int | None) -> None:
    """Make this process ready for training."""
    import torch

    from star_cli.memory import keep_pages, stay_within_memory

    keep_pages()
    if not torch.cuda.is_available():
        stay_within_memory()
    if threads:
        torch.set_num_threads(threads)


def stage_changes(stage: str, steps: int | None, rate: float | None) -> list[str]:
    """The flags of a stage as changes of its section."""
    wanted = {"steps": steps, "learning_rate": rate}
    return [f"{stage}.loop.{field}={value}" for field, value in wanted.items() if value is not None]
