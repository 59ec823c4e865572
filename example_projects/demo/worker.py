"""One worker of the demo: waits for the lock, holds it, releases it, again and again.

It reads one line of JSON from stdin and writes one line per event to stdout. The end
of stdin ends it, so no worker outlives a parent that was itself killed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dlock_core import LockProvider

from .events import Event, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Brief", "main"]

GRACE = 3.0
"""Seconds a worker may take to end once its stdin has ended."""

_STUCK = 75


@dataclass(frozen=True, slots=True)
class Brief:
    """Tell a worker its name, the lock and the folder of the markers."""

    name: str
    url: str
    key: str
    markers: str

    def line(self) -> bytes:
        """Encode for the worker's stdin: not in argv, where `ps` shows passwords."""
        return json.dumps(asdict(self)).encode() + b"\n"


def main() -> None:
    """Work until stdin ends."""
    line = sys.stdin.buffer.readline()
    if not line:
        return
    stopping = threading.Event()
    threading.Thread(target=_watch_stdin, args=(stopping,), daemon=True).start()
    try:
        _compete(Brief(**json.loads(line)), stopping)
    except BrokenPipeError:
        # The parent is gone and nothing listens.
        return


def _watch_stdin(stopping: threading.Event) -> None:
    # Unbuffered: a daemon thread inside sys.stdin would hold its lock at exit.
    while os.read(0, 4096):
        pass
    stopping.set()
    time.sleep(GRACE)
    os._exit(_STUCK)


def _compete(brief: Brief, stopping: threading.Event) -> None:
    locks = LockProvider(brief.url)
    try:
        while not stopping.is_set():
            _take_a_turn(locks, brief, stopping)
            # Without it the releaser is back before a worker that polls (SQLite) looks.
            stopping.wait(random.uniform(0.05, 0.15))
    finally:
        locks.close()


def _take_a_turn(locks: LockProvider, brief: Brief, stopping: threading.Event) -> None:
    _say(brief, Kind.WAITING)
    with locks.lock(brief.key):
        granted = time.monotonic()
        if stopping.is_set():
            return
        seconds = random.uniform(0.15, 0.5)
        _say(brief, Kind.HOLDING, f"{seconds:.3f}", at=granted)
        with _marker(brief):
            stopping.wait(seconds)
        _say(brief, Kind.RELEASED)


@contextmanager
def _marker(brief: Brief) -> Iterator[None]:
    """Leave a marker as second witness, and report those of others.

    Each marks first and looks then: of two holders at least one sees the other. A file
    bears its owner's name, and no worker removes another's. The next holder may meet the
    marker of a killed one before the parent has removed it; the judge, which knows when
    the kill was sent, does not count that as an overlap.
    """
    mine = Path(brief.markers, brief.name)
    os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        for other in mine.parent.iterdir():
            if other != mine:
                _say(brief, Kind.MET, other.name)
        yield
    finally:
        mine.unlink()


def _say(brief: Brief, kind: Kind, note: str = "", *, at: float | None = None) -> None:
    stamp = time.monotonic() if at is None else at
    os.write(1, Event(stamp, brief.name, kind, note).line())


if __name__ == "__main__":
    main()
