"""On which device, in which dtype and with which rounding a model computes, and why."""

from __future__ import annotations

import os

import torch

from star_cli.errors import OptionError
from star_cli.models.rounding import ROUNDINGS, check_rounding

GRAPHS_SWITCH = "STAR_CUDA_GRAPHS"
"""Name of the environment variable that `choose_graphs` heeds."""
_GRAPHS = {"": None, "0": None, "1": "recorded", "compiled": "compiled"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(requested: str = "auto") -> tuple[torch.device, str]:
    """The device to draw on, and why: "auto" takes the fastest that is there.

    Args:
        requested: "auto", "cpu", "cuda", "mps", or one GPU of several: "cuda:1".
    Raises:
        OptionError: an unknown device, or one that this machine does not have.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested == "auto":
        name = next(name for name, is_there in has.items() if is_there)
        return torch.device(name), "no GPU that torch can use" if name == "cpu" else f"torch sees a {name} device"
    kind, colon, number = str(requested).partition(":")  # str: a device of torch, or None, from Python
    if kind not in has or (colon and not (kind == "cuda" and number.isdecimal())):
        raise OptionError(f"--device must be auto, {', '.join(has)}, not {requested}")
    if not has[kind] or int(number or 0) >= max(1, torch.cuda.device_count()):
        raise OptionError(f"--device {requested}: torch sees no such device here", "use --device auto")
    return torch.device(kind, int(number)) if number else torch.device(kind), "asked for"


def choose_dtype(requested: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of blocks and decoder, and why. What decides tokens is float32 whatever is chosen.

    Raises:
        OptionError: an unknown dtype.
    """
    if requested == "auto":
        if device.type == "cuda":
            major, _ = torch.cuda.get_device_capability(device)
            # before Ampere bfloat16 is made of float32
            return (
                (torch.bfloat16, "fast on a GPU") if major >= 8 else (torch.float16, "fast on a GPU without bfloat16")
            )
        return torch.float32, f"rounding tips the fewest draws, on {device.type}"
    if requested not in DTYPES:
        raise OptionError(f"--dtype must be auto, {', '.join(DTYPES)}, not {requested}")
    return DTYPES[requested], "asked for"


def choose_quantize(requested: str | None, device: torch.device, dtype: torch.dtype) -> str | None:
    """How the weights of the blocks are to be rounded; None: not at all.

    Args:
        requested: one of `ROUNDINGS`, or "none", or None.
        device: where the blocks will be.
        dtype: that they will have.
    Raises:
        OptionError: an unknown name, or not there on this device, in this dtype, or without a package.
    """
    if requested in (None, "none"):
        return None
    if requested not in ROUNDINGS:
        raise OptionError(f"--quantize must be none, {' or '.join(ROUNDINGS)}, not {requested}")
    check_rounding(requested, device, dtype)
    return requested


def choose_precision(device: str, dtype: str, quantize: str | None) -> tuple[torch.device, torch.dtype, str | None]:
    """Device, dtype and rounding together, each as by its own function.

    Raises:
        OptionError: see `choose_device`, `choose_dtype` and `choose_quantize`.
    """
    chosen, _ = choose_device(device)
    of_blocks, _ = choose_dtype(dtype, chosen)
    return chosen, of_blocks, choose_quantize(quantize, chosen, of_blocks)


def choose_graphs(device: torch.device) -> str | None:
    """How the blocks of a scale become one CUDA graph: "recorded" as they are, or "compiled" before; None: they do not.

    Raises:
        OptionError: the variable that asks for it says something else.
    """
    asked = os.environ.get(GRAPHS_SWITCH, "")
    if asked not in _GRAPHS:
        raise OptionError(f"{GRAPHS_SWITCH} must be 0, 1 or compiled, not {asked}")
    return _GRAPHS[asked] if device.type == "cuda" else None
