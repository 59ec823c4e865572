"""How much is measured: enough for the docs, or enough for a look."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FULL", "QUICK", "Sizes"]


class Sizes(NamedTuple):
    """Numbers of rounds and of things, and lengths in seconds."""

    cycle_rounds: int
    batch_seconds: float
    """A contender's share of a round of cycles."""
    crowd_rounds: int
    crowd_seconds: float
    """A contender's share of a round of threads, tasks or processes."""
    many: int
    """Locks held, and tasks on one key."""
    waiting: tuple[tuple[int, int], ...]
    """Tasks that wait, and for how many keys."""
    waits: tuple[tuple[float, int], ...]
    """Timeouts, and how often each."""


FULL = Sizes(40, 0.012, 4, 0.4, 1000, ((1000, 1), (200, 200), (1000, 1000)), ((0.05, 12), (0.25, 8), (1.0, 3)))
QUICK = Sizes(8, 0.008, 2, 0.25, 200, ((200, 1), (50, 50)), ((0.05, 3), (0.25, 2)))
