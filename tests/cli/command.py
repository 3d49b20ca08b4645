"""What the fixtures of this folder give, for annotations."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from typer.testing import Result

Star = Callable[..., Result]
"""Runs a command line in this process: `star("generate", "a red circle", input="")`."""

Start = Callable[..., "subprocess.Popen[bytes]"]
"""Starts a process: `start("generate", "a red circle")`."""
