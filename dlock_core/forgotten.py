"""Locks that nobody has any more: the garbage collector finds their holds, and they are released.

The collector may come at any line of any thread, so it only starts the release, which takes mutexes
and talks to the server.
"""

from __future__ import annotations

import logging
import os
import threading
from _thread import start_new_thread
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy.util import greenlet_spawn

from .errors import LockLostError, shown

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["Forgotten"]

log = logging.getLogger("dlock")

# The event loop itself keeps no task alive.
_unfinished: set[asyncio.Task[None]] = set()


class Forgotten:
    """What to do when a hold is garbage; it knows the hold's parts, never the hold.

    Args:
        key: Named in the log.
        release: Releases it; runs in the event loop if there is one, inside SQLAlchemy's greenlet.
        pid: The process that took the lock.
        loop: The event loop that took it.
    """

    def __init__(
        self, key: object, release: Callable[[], None], *, pid: int, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self._key = key
        self._release = release
        self._pid = pid
        self._loop = loop

    def __call__(self) -> None:
        """Start the release where the lock was taken."""
        if self._pid != os.getpid():
            return
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._begin)
                return
        except RuntimeError:  # the loop is closed: its sessions are ended without it
            pass
        with suppress(RuntimeError):  # the interpreter ends, and all sessions with it
            start_new_thread(threading.Thread(target=self._run, name="dlock-forgotten", daemon=True).start, ())

    def _begin(self) -> None:
        assert self._loop is not None
        task = self._loop.create_task(greenlet_spawn(self._run))
        _unfinished.add(task)
        task.add_done_callback(_unfinished.discard)

    def _run(self) -> None:
        log.warning("key %s: nobody has the lock any more that holds it; released", shown(self._key))
        try:
            self._release()
        except LockLostError as lost:  # as the program ends, perhaps: then it is free all the same
            log.debug("released with its session: %s", lost)
        except Exception:
            log.exception("release of key %s failed", shown(self._key))
