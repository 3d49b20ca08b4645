"""Who works in a folder, and on what: so that two processes never do the same job, and the dead hold up nobody.

    .star/lock              held for the moments in which claims or the journal change
    .star/runs/RUN/alive    of each process at work: who it is; touched now and then
    .star/runs/RUN/         and its unfinished files
    .star/claims/HASH       of each job in work: which run does it

A run is dead when its process is gone, or, on another machine, when `alive` has not been touched for a while. Its
claims count for nothing then, and its unfinished files go. Whoever calls these functions holds the lock.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SILENT_S = 300.0
"""A run on another machine that has been silent so long is dead."""
BEAT_S = 20.0


@dataclass
class Claims:
    """Claims of this process, and what it knows of others'.

    Args:
        root: the folder `.star`.
    """

    root: Path
    run: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(6)}")
    held: set[str] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def scratch(self) -> Path:
        """Folder for this process's unfinished files."""
        return self.root / "runs" / self.run

    def register(self) -> None:
        """Begin to be at work here, and stay so until `leave`."""
        self._claims.mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(parents=True, exist_ok=True)
        who = {"host": this_host(), "pid": os.getpid(), "started": started(os.getpid())}
        (self.scratch / "alive").write_text(json.dumps(who), encoding="utf-8")
        threading.Thread(target=self._beat, name="star-alive", daemon=True).start()

    def clear_dead(self) -> int:
        """Remove what dead runs left behind; how many there were."""
        dead = [path for path in self._runs() if path.name != self.run and not self._is_alive(path)]
        for path in dead:
            shutil.rmtree(path, ignore_errors=True)
        for path in self._claims.iterdir():
            if self._owner(path) is None:
                path.unlink(missing_ok=True)
        return len(dead)

    def claim(self, job: str) -> bool:
        """Take a job, unless a run that is alive has it.

        Raises:
            OSError: a full disk, a folder that is gone.
        """
        path = self._claims / job
        self.held.add(job)  # before it is written: a claim that a full disk left empty is given back, too
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self.run)
        except FileExistsError:
            if self._owner(path) not in (None, self.run):
                self.held.discard(job)
                return False
            path.write_text(self.run, encoding="utf-8")
        return True

    def release(self, job: str) -> None:
        """Give a job back, done or not."""
        self.held.discard(job)
        (self._claims / job).unlink(missing_ok=True)

    def stop(self) -> None:
        """Touch nothing any more."""
        self._stopped.set()

    def leave(self) -> None:
        """Stop being at work here; nothing of this run stays, and nothing at all of the last one."""
        self.stop()
        for job in tuple(self.held):
            with suppress(OSError):
                self.release(job)
        shutil.rmtree(self.scratch, ignore_errors=True)
        with suppress(OSError):  # others are at work, and need both
            (self.root / "runs").rmdir()
            self._claims.rmdir()
            (self.root / "lock").unlink()  # filelock lets go of a lock that is no file any more, and tries again
            self.root.rmdir()

    @property
    def _claims(self) -> Path:
        return self.root / "claims"

    def _runs(self) -> list[Path]:
        folder = self.root / "runs"
        return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []

    def _owner(self, claim: Path) -> str | None:
        """The run that has a claim; None when it is dead, or died while it wrote."""
        try:
            run = claim.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
        if run == self.run:
            return run
        path = self.root / "runs" / run
        return run if run and path.name == run and self._is_alive(path) else None

    def _is_alive(self, path: Path) -> bool:
        try:
            silent_s = self._now() - (path / "alive").stat().st_mtime
            who = json.loads((path / "alive").read_text(encoding="utf-8"))
            host, pid, since = who["host"], int(who["pid"]), who["started"]
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):  # died while it wrote, or writes just now
            with suppress(OSError):
                return self._now() - path.stat().st_mtime < BEAT_S
            return False
        if host == this_host() and sys.platform != "win32":
            return is_running(pid) and since == started(pid)
        return silent_s < SILENT_S

    def _now(self) -> float:
        """The time by the clock of the folder's disk, which may be another machine's."""
        mine = self.scratch / "alive"
        os.utime(mine)
        return mine.stat().st_mtime

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_S):
            with suppress(OSError):
                os.utime(self.scratch / "alive")


def this_host() -> str:
    """This machine; inside a container, this container: process numbers mean nothing elsewhere."""
    space = Path("/proc/self/ns/pid")
    number = space.stat().st_ino if space.exists() else 0
    return f"{socket.gethostname()}/{number}"


def is_running(pid: int) -> bool:
    """Is there a process of this number?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def started(pid: int) -> str:
    """When a process began, in the system's own words, for numbers are used again; "" where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]  # proc(5): field 22, the 20th after the command's name
