"""How a long command is stopped: in good order, or at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from star_cli.cli import console
from star_cli.cli.errors import INTERRUPTED


class Stopping:
    """Ctrl-C and SIGTERM: the first ends the work in good order, the second ends the process at once."""

    def __init__(self) -> None:
        self._stop: Callable[[], None] | None = None
        self._asked = 0
        self._before: dict[int, Any] = {}

    def on_ready(self, stop: Callable[[], None]) -> None:
        """From now on there is work that can be stopped in good order."""
        self._stop = stop

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._answer)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._asked > 1:  # threads may be in the middle of anything: the interpreter's own end would wait for them
            console.say("interrupted")
            os._exit(INTERRUPTED)

    def _answer(self, number: int, frame: object) -> None:
        self._asked += 1
        if self._stop is None or self._asked > 1:
            raise KeyboardInterrupt
        self._stop()
