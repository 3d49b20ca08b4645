"""`star weights`: the published models of STAR and VAR, from the authors' files to model folders and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from star_cli.checkpoints.folder import CONFIG_FILE, ModelFolder, read_model_config, read_model_folder
from star_cli.checkpoints.known import find_model, find_model_path, model_paths, published_path
from star_cli.checkpoints.published import PUBLISHED, PublishedModel, published_model
from star_cli.cli import console, options
from star_cli.cli.errors import is_debug
from star_cli.cli.libraries import hushed
from star_cli.errors import ModelFolderError

app = typer.Typer(help="Published STAR and VAR weights, by name.", no_args_is_help=True)

StoreDtype = Literal["float32", "bfloat16", "float16"]

NameArg = Annotated[
    str, typer.Argument(metavar="NAME", show_default=False, help="A published model; see `star weights list`.")
]
ModelArg = Annotated[
    str, typer.Argument(metavar="NAME|FOLDER", show_default=False, help="A model that is here, or a model folder.")
]
FilesArg = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        show_default=False,
        help="The authors' files: the transformer's and the VQVAE's; a training snapshot holds both.",
    ),
]
AsOpt = Annotated[
    str, typer.Option("--as", metavar="NAME", show_default=False, help="Which published model the files are.")
]
OutOpt = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Model folder to write. Default: the cache, so that NAME finds it."),
]
TextOpt = Annotated[
    Path | None,
    typer.Option(
        "--text-encoder",
        metavar="FOLDER",
        help="Files of the text tower, copied into the model folder. Default: its hub name is stored.",
    ),
]
FileOpt = Annotated[
    str | None,
    typer.Option("--file", metavar="FILE", help="The transformer's file in the repository, where it is not known."),
]
DtypeOpt = Annotated[
    StoreDtype,
    typer.Option("--dtype", help="How tensors are stored, but for those that decide tokens."),
]
LayoutOpt = Annotated[Literal["official"], typer.Option("--layout", help="Whose names and wrapping.")]
ExportOutOpt = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the files go. Default: NAME-official here.")
]
DownloadForceOpt = Annotated[bool, typer.Option("--force", help="Download and convert again what is there.")]


@app.callback()
def weights() -> None:
    """Published STAR and VAR weights, by name."""


@app.command("list")
def list_weights(json: options.JsonOpt = False, debug: options.DebugOpt = False) -> None:
    """List the published models that star knows, and which of them are here.

    A table on a terminal, else one line a model with fields parted by tabs.
    """
    here = model_paths()
    rows = [_describe(model, here.get(model.name)) for model in PUBLISHED.values()]
    console.print_rows(rows, ("name", "what", "licence", "from", "folder"), _in_words, json)


@app.command()
def download(
    name: NameArg,
    file: FileOpt = None,
    dtype: DtypeOpt = "float32",
    force: DownloadForceOpt = False,
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Fetch a published model from the hub and convert it; afterwards `--model NAME` draws with it.

    An interrupted download goes on where it stopped. HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are honoured.
    """
    model, out = published_model(name), published_path(name)
    if (out / CONFIG_FILE).is_file() and not force:
        console.print_path(read_model_folder(out).path)
        return
    with hushed(debug or is_debug(())):
        from star_cli.checkpoints.convert import convert as write
        from star_cli.checkpoints.download import download as fetch

        with console.files(quiet) as on_bytes:
            fetched = fetch(model, file=file, fresh=force, on_bytes=on_bytes)
        with console.files(quiet) as on_bytes:
            folder = write(
                fetched.files,
                model,
                out,
                text_encoder=fetched.text_folder,
                dtype=_dtype(dtype),
                origin=fetched.origin,
                on_bytes=on_bytes,
            )
    _warn_of_reference(folder, quiet)
    console.print_path(folder.path)


@app.command()
def verify(model: ModelArg, json: options.JsonOpt = False, debug: options.DebugOpt = False) -> None:
    """Read every byte of a model and tell, file by file, whether it is what it was when it was written."""
    from star_cli.checkpoints.verify import verify_folder

    folder = read_model_config(find_model_path(model))
    problems = []
    for found in verify_folder(folder):
        problems += [found.problem] if found.problem else []
        if json:
            console.print_json({"file": found.file, "ok": found.problem is None, "problem": found.problem})
        else:
            console.print_line(f"{found.file}\t{found.problem or 'ok'}", keep="\t")
    if problems:
        again = f"run `star weights download {folder.name} --force`" if folder.name in PUBLISHED else None
        raise ModelFolderError(
            f"{folder.path}: {len(problems)} of its files are damaged: {problems[0]}",
            again or "copy or download the model folder again",
        )


@app.command()
def convert(
    files: FilesArg,
    name: AsOpt,
    out: OutOpt = None,
    text_encoder: TextOpt = None,
    dtype: DtypeOpt = "float32",
    quiet: options.QuietOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Make a model folder of the authors' files; a file of another model is refused and named.

    Takes no more memory than the largest tensor and one file of output.
    """
    model = published_model(name)
    with hushed(debug or is_debug(())):
        from star_cli.checkpoints.convert import convert as write

        with console.files(quiet) as on_bytes:
            folder = write(
                files,
                model,
                out or published_path(name),
                text_encoder=text_encoder,
                dtype=_dtype(dtype),
                on_bytes=on_bytes,
            )
    _warn_of_reference(folder, quiet)
    console.print_path(folder.path)


@app.command()
def export(
    model: ModelArg,
    layout: LayoutOpt = "official",
    out: ExportOutOpt = None,
    force: options.ForceOpt = False,
    debug: options.DebugOpt = False,
) -> None:
    """Write a model's weights as the authors store them, for their code and what was made for it."""
    folder = find_model(model)
    with hushed(debug or is_debug(())):
        from star_cli.checkpoints.export import export_official

        written = export_official(folder, out or Path(f"{folder.file_name}-{layout}"), overwrite=force)
    for path in written:
        console.print_path(path)


@app.command()
def path(name: ModelArg, debug: options.DebugOpt = False) -> None:
    """Show the folder of a model that is here."""
    console.print_path(find_model(name).path)


def _dtype(name: StoreDtype) -> Any:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _warn_of_reference(folder: ModelFolder, quiet: bool) -> None:
    """A hub name is a download yet to come; a model should not surprise with one."""
    text = folder.text_encoder
    if text is not None and not any(name.startswith("text_encoder/") for name in folder.files):
        console.warn(f"the text tower is not in the folder: {text.source} is fetched when it first draws", quiet)


def _describe(model: PublishedModel, here: Path | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "title": model.title,
        "resolution": model.resolution,
        "licence": model.licence,
        "repository": model.repository if model.is_published else None,
        "transformer_file": model.transformer_file,
        "vqvae_file": model.vqvae_file,
        "path": str(here) if here else None,
    }


def _in_words(row: Mapping[str, Any]) -> list[str]:
    origin = f"{row['repository']}: {row['transformer_file'] or '(found by listing)'}"
    origin = origin if row["repository"] else "(not published)"
    return [row["name"], row["title"], row["licence"], origin, row["path"] or "not here"]
