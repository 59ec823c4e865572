"""A few shared numbers: which one is inside, whether two ever were, and which one's turn it is."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path

__all__ = ["ASKING", "RELEASED_AT", "STOP", "TURN", "Referee"]

INSIDE, OVERLAPS, TURN, RELEASED_AT, STOP, ASKING = range(6)
CELLS = 8


class Referee:
    """Cells of 64 bits in a file that all processes of a crew map into their memory.

    A lock that excludes makes `enter` and `leave` alternate, so what they find amiss is an overlap.
    They look without any locking of their own, so they may miss one, but never invent one.
    """

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), CELLS * 8)
        self.cells = memoryview(self._memory).cast("q")

    @staticmethod
    def make_file() -> Path:
        """Make the file for a new crew."""
        with tempfile.NamedTemporaryFile(prefix="dlock-bench-", delete=False) as file:
            file.write(bytes(CELLS * 8))
        return Path(file.name)

    def enter(self, number: int) -> None:
        """Note that one of them holds the lock; `number` is not 0."""
        cells = self.cells
        if cells[INSIDE]:
            cells[OVERLAPS] += 1
        cells[INSIDE] = number

    def leave(self, number: int) -> None:
        """Note that it is about to release the lock."""
        cells = self.cells
        if cells[INSIDE] != number:
            cells[OVERLAPS] += 1
        cells[INSIDE] = 0

    @property
    def overlaps(self) -> int:
        """How often two were inside."""
        return self.cells[OVERLAPS]

    def reset(self) -> None:
        """Start anew; overlaps are kept."""
        for cell in (INSIDE, TURN, RELEASED_AT, STOP, ASKING, ASKING + 1):
            self.cells[cell] = 0
