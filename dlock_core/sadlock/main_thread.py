"""Signals while a driver waits: the same way out as for a provider's locks."""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING

from ..contexts import BLOCKING, MainThread
from ..threads import Workers

if TYPE_CHECKING:
    from ..contexts import Context

__all__ = ["hearing", "helpers"]


def hearing(context: Context, workers: Workers) -> Context:
    """Return a context in which this thread hears signals while a server lets it wait."""
    deaf = context is BLOCKING and threading.current_thread() is threading.main_thread()
    return MainThread(workers) if deaf else context


def helpers() -> Workers:
    """Return this process's helper threads for waits on callers' connections."""
    return _helpers_of(os.getpid())


@functools.lru_cache(maxsize=1)
def _helpers_of(_pid: int) -> Workers:
    return Workers()
