"""The watch: notices the loss of a session that holds locks, while nobody asks it anything.

One daemon thread, which runs only while locks are held or asked for. A server that ends a session hangs up, and
that is seen within milliseconds, without a query. A network that falls silent is found by a
heartbeat: a small statement on each session that was not heard of for `heartbeat` seconds, with a
deadline of its own, since a black hole never answers. Any other statement has a deadline, too.

With a lease the server itself ends a session that was silent for so long (a frozen process, a cut
network), and this side stops believing in its locks no later: both count from a statement that was
answered, we from when it was sent, the server from when it had answered.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .sockets import hang_ups

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from .sockets import HangUps
    from .threads import Workers

__all__ = ["Care", "Watch", "Watched", "clock"]

log = logging.getLogger("dlock")

# The thread looks this often at all it watches, at least; in seconds.
TICK = 1.0
# How long a statement may stay unanswered beyond the wait that it asks for, in seconds.
PATIENCE = 10.0


def clock() -> float:
    """Return seconds that go on while the machine sleeps, where it can tell."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Watched(Protocol):
    """A session, as its watch sees it."""

    socket: socket | None
    locks: int
    """How many locks it holds at the server."""
    proof: float
    """When the last statement was sent that the server answered, on `clock`."""
    due: float
    """When the statement that is under way must be answered, on `clock`."""
    silent: bool
    """The watch has given it up, since it did not answer."""
    watched: bool
    ended: bool

    def hung_up(self) -> bool:
        """Tell whether the server has closed."""
        ...

    def stranded(self) -> bool:
        """Tell whether the event loop that it needs is closed."""
        ...

    def waits(self) -> bool:
        """Tell whether it waits for a lock at the server, and cannot be asked anything meanwhile."""
        ...

    def beat(self) -> None:
        """Begin to ask the server for a sign of life."""
        ...


class Watch:
    """Watches the sessions of one provider.

    Args:
        dead: Is told of a session that was found dead, and ends it.
        heartbeat: Seconds of silence after which a session is asked for a sign of life; None never.
        lease: Seconds of silence after which the server ends a session; None never.
    """

    def __init__(self, dead: Callable[[Watched], object], *, heartbeat: float | None, lease: float | None) -> None:
        self._dead = weakref.WeakMethod(dead)
        self._pulse = min(heartbeat or float("inf"), lease / 3 if lease else float("inf"))
        self.patience = PATIENCE
        self._limit = lease or self._pulse + min(PATIENCE, self._pulse)
        self._tick = min(TICK, self._pulse / 2)
        self._mutex = threading.Lock()
        self._sessions: weakref.WeakSet[Watched] = weakref.WeakSet()
        self._hang_ups: HangUps | None = None
        self._runs = False

    def add(self, session: Watched) -> None:
        """Watch a session that is asked or holds a lock, until neither; its end may be just behind us."""
        with self._mutex:
            if session.ended:
                return
            session.watched = True
            if session in self._sessions:
                return
            self._sessions.add(session)
            if self._hang_ups is None:
                self._hang_ups = hang_ups()
            if session.socket is not None:
                self._hang_ups.add(session.socket.fileno())
            if not self._runs:
                self._runs = True
                threading.Thread(
                    target=_run, args=(weakref.ref(self), self._hang_ups, self._tick), name="dlock-watch", daemon=True
                ).start()

    def remove(self, session: Watched) -> None:
        """Watch it no more: it ends, and its socket with it."""
        with self._mutex:
            session.watched = False
            self._forget(session)

    def _forget(self, session: Watched) -> None:
        if session in self._sessions:
            self._sessions.remove(session)
            if session.socket is not None and self._hang_ups is not None:
                self._hang_ups.remove(session.socket.fileno())

    def after_fork(self) -> None:
        """Let go of the parent's watch in a forked child, without a change to it."""
        if self._hang_ups is not None:
            self._hang_ups.close()

    def round(self) -> bool:
        """Look at every session; False when there is none left, and the thread may end."""
        with self._mutex:
            sessions = list(self._sessions)
        for session in sessions:
            try:
                self._look_at(session)
            except Exception:
                log.exception("the watch over a session failed")
        with self._mutex:
            self._runs = bool(self._sessions)
            return self._runs

    def _look_at(self, session: Watched) -> None:
        now = clock()
        silence = now - session.proof
        if session.hung_up() or session.stranded():
            self._report(session)
        elif now > session.due:
            self._give_up(session, silence)
        elif not session.locks:
            self._let_go(session)
        elif session.waits():
            return
        elif silence > self._limit:
            self._give_up(session, silence)
        elif silence > self._pulse:
            session.beat()

    def _give_up(self, session: Watched, silence: float) -> None:
        log.warning("no sign of life from a lock session for %.1f s", silence)
        session.silent = True
        self._report(session)

    def _let_go(self, session: Watched) -> None:
        """Stop watching, unless it is asked: whoever asks sets `due` first, and then looks at `watched`."""
        with self._mutex:
            session.watched = False
            if session.locks or session.due < inf:
                session.watched = True
            else:
                self._forget(session)

    def _report(self, session: Watched) -> None:
        self.remove(session)
        dead = self._dead()
        if dead is not None:
            dead(session)


class Care(NamedTuple):
    """Who looks after a session while it holds locks."""

    watch: Watch
    workers: Workers
    lease: float | None


def _run(reference: weakref.ref[Watch], waiting: HangUps, tick: float) -> None:
    """Wait for hang-ups, without a hold on the watch: it may become garbage."""
    while True:
        try:
            waiting.wait(tick)
        except (OSError, ValueError):  # closed: its provider is gone
            return
        watch = reference()
        if watch is None or not watch.round():
            return
        del watch
