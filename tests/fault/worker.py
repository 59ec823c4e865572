"""A program that works under a lock until it is told to end, through every loss of its server.

Two threads take the lock in a loop. Inside, each makes a file that must not exist yet, which needs no
database to show an overlap, and writes begin and end into a journal that all processes share.
Run with: url, folder.
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
        self._inside = folder / "inside"
        self._file = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, event: str) -> None:
        """Append a line in one piece."""
        who = f"{os.getpid()}/{threading.get_ident()}"
        os.write(self._file, f"{event} {os.getpid()} {who} {time.monotonic():.6f}\n".encode())

    def body(self) -> None:
        """Do what only one may do at a time."""
        try:
            os.close(os.open(self._inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self.write("overlap")
            return
        self.write("begin")
        time.sleep(BODY)
        self.write("end")
        self._inside.unlink()


def work(locks: LockProvider, journal: Journal, over: threading.Event) -> None:
    """Take the lock again and again; the server may come and go."""
    while not over.is_set():
        try:
            with locks.lock("k", timeout=5):
                journal.body()
            journal.write("kept")
            time.sleep(PAUSE)
        except (LockConnectionError, LockLostError) as error:
            journal.write(type(error).__name__)
            time.sleep(PAUSE)
        except LockTimeoutError:
            journal.write("starved")
        except BaseException:
            traceback.print_exc()
            os._exit(1)


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
