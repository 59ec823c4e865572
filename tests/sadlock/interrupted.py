"""A program whose main thread waits for a held lock, by a connection or session, until Ctrl-C.

Run with: url, kind. It tells on its output what happens, with stamps of the monotonic clock, which all
processes of a machine share; at the end it takes the lock on the same connection or session.
"""

from __future__ import annotations

import sys
import time

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dlock_core import create_sadlock


def say(event: str) -> None:
    """Write one line at once."""
    print(event, f"{time.monotonic():.9f}", flush=True)


def main(url: str, kind: str) -> None:
    """Wait, be called away, and take the lock again."""
    engine = sa.create_engine(url)
    with engine.connect() if kind == "connection" else Session(engine) as target:
        target.execute(sa.text("SELECT 1"))
        target.rollback()
        lock = create_sadlock(target, "k")
        try:
            say("asks")
            lock.acquire()
        except KeyboardInterrupt:
            say("KeyboardInterrupt")
        target.rollback()
        sys.stdin.readline()
        with lock:
            target.execute(sa.text("SELECT 1"))
        target.rollback()
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
