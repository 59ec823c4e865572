"""What may be wrong with locks on a database: tried, measured and asked."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from .dialects.views import Finding
from .errors import LockError

if TYPE_CHECKING:
    from .contexts import Context
    from .inspection import Inspector
    from .manager import Manager

__all__ = ["Finding", "check"]

# Cycles whose median is the latency.
CYCLES = 15
# A lock that takes so long, in seconds, is worth a look at the network.
SLOW = 0.25
# Always the same: SQLite keeps a file for each key. Two checks at one time wait for each other, in seconds.
KEY, PATIENCE = "dlock-check", 5.0


def check(manager: Manager, inspector: Inspector, context: Context) -> list[Finding]:
    """Take a lock of our own, again and again, and ask the server about itself."""
    found = _tried(manager, context)
    try:
        return found + inspector.findings()
    except LockError as error:
        return [*found, Finding("server", None, f"{error}")]


def _tried(manager: Manager, context: Context) -> list[Finding]:
    try:
        first, *seconds = [_cycle(manager, context) for _ in range(CYCLES + 1)]
    except LockError as error:
        return [Finding("lock", False, str(error).partition(": ")[2] or str(error))]  # noqa: FBT003 - a field
    median = statistics.median(seconds)
    return [
        Finding("lock", True, f"taken and released; {_ms(first)} with the opening of a session"),  # noqa: FBT003
        Finding("latency", median < SLOW, f"{_ms(median)} to take and release a free lock (median of {CYCLES})"),
    ]


def _cycle(manager: Manager, context: Context) -> float:
    """Take and release a lock that only other checks want; return the seconds."""
    request = manager.request(KEY, shared=False, fencing=False)
    started = time.perf_counter()
    ticket = manager.ticket(request, context, PATIENCE)
    if not manager.acquire(ticket, request, context, PATIENCE):
        raise LockError(f"key {KEY}: a lock that nobody holds for long was refused for {PATIENCE:.0f} s")
    manager.release(ticket, context)
    return time.perf_counter() - started


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
