"""An executor for aioodbc, whose statements run in threads.

A task that is cancelled leaves its statement running there. To close the connection then, under the
statement, crashes the process in most ODBC drivers, and to wait for the statement may take for ever.
"""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

from .threads import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OneByOne"]

R = TypeVar("R")
INSIST = 0.05


class OneByOne:
    """Runs one function at a time, for one connection, each in a daemon thread."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._unfinished: set[Future[Any]] = set()

    @classmethod
    def of(cls, driver_connection: Any) -> OneByOne | None:
        """Return the one of a connection, from now on; None if its driver is not aioodbc."""
        if not type(driver_connection).__module__.startswith("aioodbc"):
            return None
        if not isinstance(driver_connection._executor, cls):  # noqa: SLF001 - it can only be given to the connection's maker
            driver_connection._executor = cls()  # noqa: SLF001 - same
        return driver_connection._executor  # noqa: SLF001 - same

    def submit(self, function: Callable[..., R], *args: Any) -> Future[R]:
        """Run the function when those before it are done, unless its future is cancelled first."""
        future: Future[R] = Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        _workers(os.getpid()).submit(lambda: self._run(future, function, args))
        return future

    def _run(self, future: Future[R], function: Callable[..., R], args: tuple[Any, ...]) -> None:
        with self._busy:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever awaits the future
                future.set_exception(error)
            else:
                future.set_result(result)

    def stop(self, cancel: Callable[[], object]) -> None:
        """End what was submitted; a cancel may come before the driver has begun, so it is repeated."""
        running = set(self._unfinished)
        _workers(os.getpid()).submit(lambda: _insist(running, cancel))


def _insist(running: set[Future[Any]], cancel: Callable[[], object]) -> None:
    while wait(running, timeout=INSIST).not_done:
        cancel()


@functools.lru_cache(maxsize=1)
def _workers(_pid: int) -> Workers:
    return Workers()
