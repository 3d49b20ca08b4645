"""`star doctor`: versions, devices, memory, what will be used and why, and whether the default model is sound."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from star_cli import __version__
from star_cli.checkpoints.known import SHIPPED, cache_root, find_model
from star_cli.checkpoints.verify import verify_folder
from star_cli.cli import console, options
from star_cli.cli.defaults import Default, found_defaults
from star_cli.cli.errors import is_debug
from star_cli.cli.libraries import hushed
from star_cli.errors import StarError
from star_cli.memory import available_bytes

_LIBRARIES = (
    *("torch", "transformers", "open_clip_torch", "safetensors", "huggingface_hub"),
    *("numpy", "pillow", "typer", "rich"),
)
_UNITS = 2**30


def doctor(json: options.JsonOpt = False, debug: options.DebugOpt = False) -> None:
    """Tell what star will use and why.

    Versions, devices, memory, and whether every byte of the default model is what it should be.
    Exit code 1 when something that drawing needs is broken.
    """
    with hushed(debug or is_debug(())):
        said = {default.name: default for default in found_defaults()}
        report = {"versions": _versions(), "machine": _machine(), **_torch(said), "model": _model(said)}
    problems = [part["problem"] for part in report.values() if "problem" in part]
    if json:
        console.print_json({**report, "problems": problems})
    else:
        for title, part in report.items():
            console.print_line(title)
            for name, value in part.items():
                console.print_line(f"  {name}: {value}")
        console.print_line("problems: " + ("; ".join(problems) or "none"))
    if problems:
        raise typer.Exit(1)


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"star": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    if missing := [name for name in _LIBRARIES if found[name] == "missing"]:
        found["problem"] = f"not installed: {', '.join(missing)}"
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "free_memory_gib": _free_memory_gib(),
        "cache": str(cache_root()),
    }


def _torch(said: Mapping[str, Default]) -> dict[str, dict[str, Any]]:
    """What torch offers, and what will be used of it."""
    try:
        import torch

        from star_cli.hardware import choose_device, choose_dtype
    except Exception as error:  # a broken install fails in many ways, and this command is there to tell
        return {"torch": {"problem": f"torch cannot be used: {error}"}}
    try:
        device, why_device = choose_device(_asked(said, "device", "auto"))
        dtype, why_dtype = choose_dtype(_asked(said, "dtype", "auto"), device)
    except StarError as error:
        return {"used": {"problem": str(error)}}
    gpus = [_gpu(torch.cuda.get_device_properties(index)) for index in range(torch.cuda.device_count())]
    return {
        "torch": {
            "cuda": ", ".join(gpus) or "none",
            "mps": "yes" if torch.backends.mps.is_available() else "none",
            "threads": torch.get_num_threads(),
        },
        "used": {
            "device": device.type,
            "device_because": _because(said, "device", why_device),
            "dtype": str(dtype).removeprefix("torch."),
            "dtype_because": _because(said, "dtype", why_dtype),
        },
        "precision": _precision(device.type),
    }


def _precision(device: str) -> dict[str, Any]:
    """What another precision would gain here; measured where `auto` takes float32 on a CPU."""
    if device != "cpu":
        return {}
    from star_cli.evaluation.precision import measure_speedups

    return {f"{name}_speedup": speedup and round(speedup, 1) for name, speedup in measure_speedups().items()}


def _gpu(properties: Any) -> str:
    return f"{properties.name} ({properties.total_memory / _UNITS:.1f} GiB)"


def _asked(said: Mapping[str, Default], name: str, usual: str) -> str:
    return str(said[name].value) if name in said else usual


def _because(said: Mapping[str, Default], name: str, why: str) -> str:
    """The reason that torch and the machine give, or where the user's own default is."""
    return f"{said[name].source} says so" if name in said and said[name].value != "auto" else why


def _model(said: Mapping[str, Default]) -> dict[str, Any]:
    """The default model, every byte of it checked, and that its tensors are those of its config."""
    name = _asked(said, "model", SHIPPED)
    found: dict[str, Any] = {"default": name}
    try:
        folder = find_model(name)
        found |= {"folder": str(folder.path), "hash": folder.hash, "size_bytes": folder.size_bytes}
        problem = next((checked.problem for checked in verify_folder(folder) if checked.problem), None)
    except (StarError, OSError, ImportError) as error:  # a name too long for any folder; a torch that is not there
        problem = str(error)
    return {**found, "verified": problem is None, **({} if problem is None else {"problem": problem})}


def _memory_gib() -> float | None:
    return _quietly(lambda: os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _free_memory_gib() -> float | None:
    free = available_bytes()
    return None if free is None else round(free / _UNITS, 1)


def _quietly(read: Callable[[], int]) -> float | None:
    """GiB, or None on a system that does not say."""
    try:
        return round(read() / _UNITS, 1)
    except (OSError, ValueError, AttributeError):
        return None
