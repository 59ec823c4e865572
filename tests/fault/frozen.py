"""A program that waits for a lock on lease and holds it, and tells what it knows when it finds that it was frozen.

Run with: url, lease.
"""

from __future__ import annotations

import sys
import time

from dlock_core import LockConnectionError, LockLostError, LockProvider
from dlock_core.sessions.watch import clock

LEAP = 1.0


def main(url: str, lease: float) -> None:
    """Hold, be frozen, and look."""
    locks = LockProvider(url, lease=lease)
    print("asks", flush=True)
    try:
        with locks.lock("k", timeout=30) as lock:
            print("holds", flush=True)
            before = now = clock()
            while now - before < LEAP:
                time.sleep(0.01)
                before, now = now, clock()
            held, lost = lock.held, lock.lost
            print("held" if held else "not-held", "lost" if lost else "not-lost", flush=True)
    except (LockConnectionError, LockLostError) as error:
        print(type(error).__name__, flush=True)
    with locks.lock("k", timeout=5):
        print("again", flush=True)
    locks.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
