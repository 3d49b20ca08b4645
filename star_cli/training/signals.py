"""Being asked to stop: the step under way is finished and saved, then the signal takes its usual course."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Which signal asked to stop; none so far."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Note the first Ctrl-C or SIGTERM instead of being interrupted by it; a second one interrupts as usual.

    After the block the signal is raised again, for whoever handles it outside: Python by a KeyboardInterrupt, the
    command line by its exit code, nobody by ending the process. An error in the block goes first. Off the main thread,
    where Python hears no signals, nothing is noted; nor is a signal that is ignored outside, as a shell has it for
    Ctrl-C in what a script starts in the background.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        give_back()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        give_back()
    if request.number is not None:
        signal.raise_signal(request.number)
