"""How long something waits: timeouts are parsed once at the door, and from there on there are only deadlines.

A wait at the server may also be ended from elsewhere: by a cancel, else with its session.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from contextlib import suppress
from numbers import Real
from typing import TYPE_CHECKING

from sqlalchemy.util import await_only, greenlet_spawn

from ..errors import LockConnectionError, shown
from .drivers import CANCEL_SECONDS
from .watch import clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .session import SqlSession

__all__ = ["FOR_EVER", "PATIENCE", "Deadline", "ServerWait", "parse_timeout", "patience"]

log = logging.getLogger("dlock")

# How long a database may be silent beyond the time that the caller gave, in seconds; and how long at most when it
# has not begun to wait for the lock, because there is no session yet or another statement is under way.
PATIENCE, MOST = 10.0, 60.0


def parse_timeout(value: object) -> float | None:
    """Check a timeout: None waits without limit, 0 tries once, else seconds.

    Raises:
        ValueError: It is negative, not a number, or not a number at all.
    """
    if value is None or (type(value) is float and 0 <= value < math.inf):  # the common case
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            seconds = float(value)
            if seconds >= 0:
                return None if math.isinf(seconds) else seconds
    raise ValueError(
        f"timeout={shown(value)}: give None (wait without limit), 0 (one try) or a number of seconds above 0"
    )


class Deadline:
    """A moment on the monotonic clock, or never."""

    __slots__ = ("at", "started", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.started = time.monotonic()
        self.at = None if timeout is None else self.started + timeout

    def remaining(self) -> float | None:
        """Return the seconds left, not below 0; None is without limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at

    @property
    def waited(self) -> float:
        """Seconds since this deadline was set."""
        return time.monotonic() - self.started


FOR_EVER = Deadline(None)


def patience(deadline: Deadline) -> float:
    """Return how many seconds the caller waits for what comes before its wait: a session, and its turn on it."""
    remaining = deadline.remaining()
    return MOST if remaining is None else min(MOST, remaining + PATIENCE)


class ServerWait:
    """The wait of one session; `begin` and `end` around it are for the thread or task that waits.

    Args:
        loop: The event loop that the driver needs; then the waiter is a task.
        kills: The server's own word ends the statement, from another connection.
        sound: A cancel that has come back reaches no later statement.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, *, kills: bool, sound: bool) -> None:
        self.seconds = 0.0
        """How long the server is asked to wait; 0 while it is not."""
        self._loop = loop
        self._kills = kills
        self._sound = sound
        self._task: asyncio.Task[Any] | None = None
        # Taken while a cancel is on its way; tasks wait for the future instead.
        self._cancelling = threading.Lock()
        self._killed: asyncio.Future[None] | None = None
        self._cancelled_at: float | None = None

    def begin(self, timeout: float | None) -> None:
        """Note that a statement that waits is about to be sent."""
        self._cancelled_at = None
        self._task = None if self._loop is None else asyncio.current_task()
        self.seconds = math.inf if timeout is None else timeout

    def end(self) -> None:
        """Let a cancel that is on its way come back, so that it hits no later statement.

        Raises:
            LockConnectionError: It may still arrive.
        """
        late = False
        if self._loop is not None:
            self.seconds = 0.0
            if self._killed is not None:
                late = not await_only(asyncio.wait([self._killed], timeout=CANCEL_SECONDS))[0]
        else:
            late = not self._cancelling.acquire(timeout=CANCEL_SECONDS)
            self.seconds = 0.0
            if not late:
                self._cancelling.release()
        if late or not (self._cancelled_at is None or self._sound):
            raise LockConnectionError("a wait was cancelled, and the cancel may still arrive")

    def was_answered(self) -> bool:
        """Tell whether the cancel of the waiting task was ours, and the driver has waited for the statement's end.

        Then the cancel is taken back.
        """
        if not self.seconds or self._cancelled_at is None or self._kills or not self._sound:
            return False
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return True

    def interrupt(self, session: SqlSession, waiter: object) -> None:
        """End the wait if it is this waiter's; the wait does not end before this call has returned."""
        if self._loop is not None:
            self._interrupt_task(session, waiter)
            return
        with self._cancelling:
            if self._is_of(session, waiter):
                self._cancel(session, session.kill_statement if self._kills else session.cancel_statement)

    def _is_of(self, session: SqlSession, waiter: object) -> bool:
        return self.seconds > 0 and session.waiter is waiter

    def _interrupt_task(self, session: SqlSession, waiter: object) -> None:
        if not self._is_of(session, waiter) or self._killed is not None:
            return
        if not self._kills:
            self._cancel(session, self._cancel_task)
            return
        assert self._loop is not None
        killed = self._killed = self._loop.create_future()
        try:
            await_only(asyncio.wait_for(greenlet_spawn(self._cancel, session, session.kill_statement), CANCEL_SECONDS))
        except TimeoutError:
            self._give_up(session)
        finally:
            self._killed = None
            killed.set_result(None)

    def _cancel(self, session: SqlSession, cancel: Callable[[], None]) -> None:
        if self._cancelled_at is None:
            self._cancelled_at = clock()
        if clock() - self._cancelled_at > CANCEL_SECONDS:
            self._give_up(session)
            return
        try:
            cancel()
        except Exception:
            log.debug("could not cancel a wait", exc_info=True)
            self._give_up(session)

    def _cancel_task(self) -> None:
        """Let the driver cancel, once: a second cancel would call it away from that."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def _give_up(self, session: SqlSession) -> None:
        """End the wait, and its session with it."""
        session.hang_up()
        if self._task is not None:
            self._task.cancel()
