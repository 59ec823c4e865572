"""Workers of the demo that are wrong on purpose; run as `python workers.py KIND`.

Each is the real worker with another lock under it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from example_projects.demo import worker


class NoLock:
    """Grant the lock to all."""

    def __init__(self, url: str) -> None:
        self.file = Path(f"{url.removeprefix('sqlite:///')}.lock")

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Enter at once."""
        yield

    def close(self) -> None:
        """Own nothing that needs closing."""


class NeverFreed(NoLock):
    """Exclude others, but stay locked indefinitely when the holder is killed."""

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Enter when a file could be created that nothing but leaving removes."""
        while not self._created():
            time.sleep(0.005)
        try:
            yield
        finally:
            self.file.unlink()

    def _created(self) -> bool:
        try:
            os.close(os.open(self.file, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class Crashing(NeverFreed):
    """Exclude others, but break at the end of the first hold."""

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Raise what a lost session would."""
        with super().lock(key):
            yield
        raise ConnectionError("the server went away")


if __name__ == "__main__":
    vars(worker)["LockProvider"] = {
        "no-lock": NoLock,
        "never-freed": NeverFreed,
        "crashing": Crashing,
    }[sys.argv[1]]
    worker.main()
