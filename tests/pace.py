"""Limits of time that hold on a loaded machine, too."""

from __future__ import annotations

import time

__all__ = ["promptly"]

SAMPLE = 0.05


def promptly(elapsed: float, seconds: float) -> bool:
    """Tell whether something took less than so many seconds, longer on a machine that others keep busy now."""
    return elapsed < seconds or elapsed < seconds * _slowness()


def _slowness() -> float:
    """Return how much longer than its own time on the processor a computation takes here, 1 on a machine at rest."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < SAMPLE:
        pass
    return 2 * (time.monotonic() - began) / SAMPLE - 1  # the other side of what is timed waits for its turn, too
