"""Full-size proof of converting: official files of random weights, converted, loaded strictly, exported, compared.

    python benchmarks/convert_full_size.py star-1024-stable var-d36-s --folder /a/place/with/40/GB

Each step is a process of its own, so its peak memory is its own. Two figures: all resident memory, pages of mapped
files included, which the system can take back at any time; and anonymous memory alone, which it cannot.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from star_cli.checkpoints.convert import convert
from star_cli.checkpoints.export import export_official
from star_cli.checkpoints.folder import read_model_folder
from star_cli.checkpoints.published import PublishedModel, published_model
from star_cli.checkpoints.translate import official_places

GIB = 2**30


def model_of(name: str) -> PublishedModel:
    """The published model, its transformer's file named even where the published name is not known."""
    model = published_model(name)
    return replace(model, transformer_file=model.transformer_file or f"{name}.pth")


def random_state(config: Any, model: PublishedModel, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, place in official_places(config, model.schedule).items():
        if place.refill is not None and not place.row.kept:
            state[key] = place.refill
        else:
            fan_in = place.shape[-1] if len(place.shape) > 1 else 16
            state[key] = torch.randn(place.shape, generator=generator) / fan_in**0.5
    return state


def make(folder: Path, name: str) -> None:
    """The files as the authors save them: STAR's training snapshot holds the VQVAE, too."""
    model = model_of(name)
    vqvae = random_state(model.vqvae, model, seed=1)
    content: dict[str, Any] = random_state(model.transformer, model, seed=0)
    if model.transformer.conditioning == "text":
        config = {"patch_nums": model.schedule.sides, "resos": None, "label_smooth": 0.0, "prog_it": 0}
        trainer = {"config": config, "var_wo_ddp": content, "vae_local": vqvae, "var_opt": {"optimizer": {}}}
        content = {"epoch": 2, "iter": 6000, "trainer": trainer}
    torch.save(content, folder / str(model.transformer_file))
    torch.save(vqvae, folder / model.vqvae_file)


def convert_files(folder: Path, name: str) -> None:
    model = model_of(name)
    convert([folder / str(model.transformer_file), folder / model.vqvae_file], model, folder / "model")


def load(folder: Path, name: str) -> None:
    read = read_model_folder(folder / "model")
    assert read.load_transformer().config == model_of(name).transformer
    read.load_vqvae()


def export(folder: Path, name: str) -> None:
    export_official(read_model_folder(folder / "model"), folder / "back")


def compare(folder: Path, name: str) -> None:
    """Every tensor of the official files against the exported ones: same keys, dtypes, shapes, bits."""
    model = model_of(name)
    exported = {path.name: path for path in (folder / "back").iterdir()}
    for file in (str(model.transformer_file), model.vqvae_file):
        back = exported.get(file) or exported[f"{name}.pth"]
        first, second = _state(folder / file), _state(back)
        assert first.keys() == second.keys()
        different = [key for key, tensor in first.items() if not _same(tensor, second[key])]
        assert not different, different
        print(f"  {file}: {len(first)} tensors identical", file=sys.stderr)


def draw(folder: Path, name: str) -> None:
    """One picture, as anybody draws one."""
    from star_cli.pipeline import StarPipeline

    pipe = StarPipeline.from_pretrained(folder / "model", device="cpu", dtype="float32")
    wish: dict[str, Any] = {"classes": 207}
    if model_of(name).transformer.conditioning == "text":
        wish = {"prompts": "a red circle"}
    (image,) = pipe(**wish)
    assert image.pixels.shape[0] == model_of(name).resolution


def _state(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True, mmap=True)
    return dict(content["trainer"]["var_wo_ddp"] if "trainer" in content else content)


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


STEPS: dict[str, Callable[[Path, str], None]] = {
    "make": make,
    "convert": convert_files,
    "load": load,
    "export": export,
    "compare": compare,
    "draw": draw,
}


@contextmanager
def _anonymous_peak() -> Iterator[list[int]]:
    """Largest anonymous memory of this process, in bytes, looked at every 20 ms (Linux)."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        status = Path("/proc/self/status")
        while not done.wait(0.02):
            for line in status.read_text().splitlines() if status.is_file() else []:
                if line.startswith("RssAnon:"):
                    peak[0] = max(peak[0], int(line.split()[1]) * 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def run_step(step: str, folder: Path, name: str) -> None:
    start = time.perf_counter()
    with _anonymous_peak() as anonymous:
        STEPS[step](folder, name)
    seconds = time.perf_counter() - start
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": seconds, "resident": resident, "anonymous": anonymous[0]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["star-1024-stable", "var-d36-s"])
    parser.add_argument("--folder", type=Path, default=None, help="where there is room; a temporary one by default")
    parser.add_argument(
        "--draw", action="store_true", help="draw one picture, too; a model that reads text needs its tower"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(given.step, given.folder, given.names[0])
        return
    print(f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}")
    print("| model | step | seconds | peak resident | of it anonymous |\n|---|---|---|---|---|")
    for name in given.names:
        folder = Path(tempfile.mkdtemp(prefix="star-convert-", dir=given.folder))
        try:
            for step in [step for step in STEPS if step != "draw" or given.draw]:
                command = [sys.executable, __file__, name, "--folder", str(folder), "--step", step]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                facts = json.loads(done.stdout.splitlines()[-1])
                memory = f"{facts['resident'] / GIB:.2f} GiB | {facts['anonymous'] / GIB:.2f} GiB"
                print(f"| `{name}` | {step} | {facts['seconds']:.1f} | {memory} |", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
