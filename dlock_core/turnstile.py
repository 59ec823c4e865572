"""A mutex in order of arrival, for threads and for the tasks of one loop alike."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from .timeouts import FOR_EVER

if TYPE_CHECKING:
    from .contexts import Context, Latch

__all__ = ["Turnstile"]


class Turnstile:
    """Lets one in at a time; whoever holds it does so for a statement, never for a wait."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._line: deque[Latch] = deque()

    def enter_if_free(self) -> bool:
        """Enter unless somebody is inside."""
        with self._mutex:
            if self._taken:
                return False
            self._taken = True
            return True

    def enter(self, context: Context) -> None:
        """Enter after all who came before."""
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            latch = context.latch()
            self._line.append(latch)
        try:
            latch.wait(FOR_EVER)
        except BaseException:
            self._withdraw(latch)
            raise

    def _withdraw(self, latch: Latch) -> None:
        with self._mutex:
            if latch in self._line:
                self._line.remove(latch)
                return
        self.leave()

    def leave(self) -> None:
        """Let the next one in."""
        with self._mutex:
            while self._line:
                if self._line.popleft().set():
                    return
            self._taken = False
