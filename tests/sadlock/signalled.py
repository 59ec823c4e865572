"""A program whose main thread takes locks of a connection or session while a signal handler raises at random moments.

A thread of its own competes with it. When all signals have come, it takes each lock once more on what it
used all the time, says so, and waits with that still open, so that the server can be asked what it has left
there; then it gives its connection back, says so, and waits again. Run with: url, kind, number of signals, seed.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from dlock_core import LockProvider, create_sadlock
from dlock_core.sadlock import own
from tests.fault.signalled import KEYS, be_called_away, call_away, compete


def use(target: Any, chance: random.Random) -> None:
    """Take a lock by hand and one by `with`."""
    lock = create_sadlock(target, chance.randrange(KEYS))
    try:
        lock.acquire(timeout=chance.choice([None, 0.02, 5]))
    finally:
        lock.close()
    with create_sadlock(target, KEYS):
        pass


def say(event: str) -> None:
    """Write one line at once, and wait for one."""
    print(event, flush=True)
    sys.stdin.readline()


def main(url: str, kind: str, signals: int, seed: int) -> None:
    """Be called away so many times, say so, and end on a line of input."""
    signal.signal(signal.SIGALRM, call_away)
    engine, locks = sa.create_engine(url, pool_size=1, max_overflow=0, pool_timeout=5), LockProvider(url)
    target = engine.connect() if kind == "connection" else Session(engine)
    over = threading.Event()
    rival = threading.Thread(target=compete, args=(locks, over))
    rival.start()
    chance = random.Random(seed)
    be_called_away(lambda: use(target, chance), signals, chance, target.rollback)
    over.set()
    rival.join()
    locks.close()
    for key in range(KEYS + 1):
        with create_sadlock(target, key, 5):
            pass
    say("over")
    target.close()
    say("given back")
    assert not own.engines.by_engine, "sessions for locks are open though no lock is held or waited for"
    engine.dispose()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
