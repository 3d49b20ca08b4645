"""One module of a library, without all the rest that its package imports."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from threading import Lock
from types import ModuleType

_LOCK = Lock()


@cache
def import_alone(name: str, *packages: str) -> ModuleType:
    """Import a module, but not run the `__init__` of some packages on the way to it.

    The module's own imports work as ever. Afterwards nothing of the packages is left among the loaded modules, so that
    a later `import` of one of them is the usual one, with modules of its own. A package that is loaded already is used
    as it is.

    Args:
        name: of the module: "open_clip.tokenizer".
        packages: whose `__init__` the module does without; one inside another comes after it.
    Raises:
        ImportError: a module is not installed.
    """
    with _LOCK:
        passed = [package for package in packages if package not in sys.modules]
        try:
            for package in passed:
                if (spec := find_spec(package)) is not None:
                    sys.modules[package] = module_from_spec(spec)  # has the path to its modules; nothing is run
            return import_module(name)
        finally:
            below = tuple(f"{package}." for package in passed)
            for loaded in [loaded for loaded in sys.modules if loaded in passed or loaded.startswith(below)]:
                del sys.modules[loaded]
