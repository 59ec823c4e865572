"""A program that works under a lock until it is asked to end, through every loss of its server.

Two threads take the lock in a loop and write into a journal that all processes share, a line for each try: what
became of it, and when its work began and ended by the machine's monotonic clock, which tells an overlap without any
database. Run with: url, folder.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from dlock_core import LockConnectionError, LockLostError, LockProvider, LockTimeoutError

THREADS = 2
BODY = 0.001
PAUSE = 0.02


class Journal:
    """One file of lines that all workers append to."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, event: str, began: float, ended: float) -> None:
        """Append a line in one piece."""
        os.write(self._file, f"{event} {os.getpid()} {began:.6f} {ended:.6f}\n".encode())


def work(locks: LockProvider, journal: Journal, over: threading.Event) -> None:
    """Take the lock again and again; the server may come and go."""
    while not over.is_set():
        began = ended = 0.0
        event = "kept"
        try:
            with locks.lock("k", timeout=5):
                began = time.monotonic()
                time.sleep(BODY)
                ended = time.monotonic()
        except (LockConnectionError, LockLostError, LockTimeoutError) as error:
            event = type(error).__name__
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        journal.write(event, began, ended)
        time.sleep(PAUSE)


def main(url: str, folder: str) -> None:
    """Work until the input ends."""
    over = threading.Event()
    locks, journal = LockProvider(url), Journal(Path(folder))
    threads = [threading.Thread(target=work, args=(locks, journal, over)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    locks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
