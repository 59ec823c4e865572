"""A program that holds a lock on lease, and tells what it knows of it when it finds that it was frozen.

Run with: url, lease.
"""

from __future__ import annotations

import sys
import time

from dlock_core import LockLostError, LockProvider
from dlock_core.watch import clock

LEAP = 1.0


def main(url: str, lease: float) -> None:
    """Hold, be frozen, and look."""
    locks = LockProvider(url, lease=lease)
    try:
        with locks.lock("k", timeout=5) as lock:
            print("holds", flush=True)
            before = now = clock()
            while now - before < LEAP:
                time.sleep(0.01)
                before, now = now, clock()
            held, lost = lock.held, lock.lost
            print("held" if held else "not-held", "lost" if lost else "not-lost", flush=True)
    except LockLostError:
        print("LockLostError", flush=True)
    with locks.lock("k", timeout=5):
        print("again", flush=True)
    locks.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
