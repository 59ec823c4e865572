"""A program that forks while one thread of it holds a lock and another one waits for another, in a statement.

Run with: url. Its child says what it finds, and lives on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from dlock_core import LockProvider


def main(url: str) -> None:
    """Hold, wait, and fork when asked to."""
    locks = LockProvider(url)
    lock = locks.lock("held")
    assert lock.acquire()
    threading.Thread(target=locks.lock("busy").acquire, daemon=True).start()
    print("waits", flush=True)
    sys.stdin.readline()
    if os.fork() == 0:
        found = len(locks.held_locks())
        own = locks.lock("own")
        granted = own.acquire(timeout=10)
        print(f"{os.getpid()} {found} {granted} {lock.held}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
