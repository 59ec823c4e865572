"""The watch: notices the loss of a session that holds locks, while nothing is asked of it.

One daemon thread, which runs while sessions are open: each is on the watch's list from its opening to
its end, whatever it does. A server that ends a session hangs up, and that is seen within milliseconds,
without a query. A network that falls silent is found by a heartbeat: a small statement on each session
that holds locks and was not heard of for `heartbeat` seconds. Every statement has a deadline.

Without a lease only an unanswered statement gives a session up, never mere silence. Deadlines are
counted in the time in which this process runs: the server keeps the locks of one that is frozen, and
the answers lie there unread when it goes on. An event loop that is blocked reads none either.

With a lease the server itself ends a session that was silent for so long (a frozen process, a cut
network), and this side stops believing in its locks no later: both count from a statement that was
answered, we from when it was sent, the server from when it had answered.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Protocol

from ..errors import LockConnectionError
from .sockets import hang_ups, keep_alive
from .workers import Workers, reaper

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from .sockets import HangUps

__all__ = ["Watch", "Watched", "clock"]

log = logging.getLogger("dlock")

# The thread looks this often at all it watches, at least; in seconds.
TICK = 1.0
# How long a statement may stay unanswered beyond the wait that it asks for, in seconds.
PATIENCE = 10.0


clock = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Return seconds that go on while the machine sleeps, where it can tell."""


class Watched(Protocol):
    """A session, as its watch sees it."""

    socket: socket | None
    locks: int
    """How many locks it holds at the server."""
    proof: float
    """When the last statement was sent that the server answered, on `clock`."""
    due: float
    """When the statement that is under way must be answered, on `Watch.time`; inf while there is none."""
    silent: bool
    """The watch has given it up, since it did not answer."""
    ended: bool

    def hung_up(self) -> bool:
        """Tell whether the server has closed, or the event loop that it needs."""
        ...

    def stirs(self) -> bool:
        """Tell whether something came from the server that may be its end: a statement will tell."""
        ...

    def expired(self) -> bool:
        """Tell whether its lease is over."""
        ...

    def waits(self) -> bool:
        """Tell whether it waits for a lock at the server, and cannot be asked anything meanwhile."""
        ...

    def beat(self) -> object:
        """Begin to ask the server for a sign of life."""
        ...

    def call_reader(self, function: Callable[[], None]) -> None:
        """Call a function where the answers of the server are read, as soon as anything runs there."""
        ...

    def park(self) -> None:
        """Give it up in a forked child."""
        ...


class Watch:
    """Watches the sessions of one provider.

    Args:
        dead: Called with a session that was found dead, and ends it.
        heartbeat: Seconds of silence after which a session is asked for a sign of life; None never.
        lease: Seconds of silence after which the server ends a session; None never.
        workers: Threads for heartbeats.
        each_round: A method that is called after each round; it is held weakly, and must be quick. While it returns
            True there are further rounds, also without a session.
    """

    def __init__(
        self,
        dead: Callable[[Watched], object],
        *,
        heartbeat: float | None,
        lease: float | None,
        workers: Workers | None = None,
        each_round: Callable[[], bool] | None = None,
    ) -> None:
        self.lease = lease
        self.workers = workers or Workers()
        self._dead = weakref.WeakMethod(dead)
        self._each_round = None if each_round is None else weakref.WeakMethod(each_round)
        self._pulse = min(heartbeat or inf, lease / 3 if lease else inf)
        self._tick = min(TICK, self._pulse / 2)
        self.patience = PATIENCE
        # Of a statement on a session that holds locks: a lease ends by itself.
        self.patience_with_locks = PATIENCE if lease else min(PATIENCE, self._pulse)
        # Re-entrant: the garbage collector may end an abandoned provider's sessions in this very thread.
        self._mutex = threading.RLock()
        # By their ids: weak sets and dictionaries fail when the collector takes something out during a walk.
        self._sessions: dict[int, weakref.ref[Watched]] = {}
        self._suspects: dict[int, _Suspect] = {}
        self._hang_ups: HangUps | None = None
        self._thread: threading.Thread | None = None
        self.frozen = 0.0
        """Seconds that this process did not run, so far."""
        self._last_round = 0.0
        self._grace_ends = 0.0

    @property
    def sessions(self) -> list[Watched]:
        """All that are open."""
        found = [(number, reference()) for number, reference in list(self._sessions.items())]
        for number, session in found:
            if session is None:  # it became garbage without an end
                self._sessions.pop(number, None)
        return [session for _, session in found if session is not None]

    def time(self) -> float:
        """Return seconds that stand still while this process is frozen."""
        return clock() - self.frozen

    def add(self, session: Watched) -> None:
        """Watch a session from now until its end.

        Raises:
            LockConnectionError: The system gives no thread for it.
        """
        with self._mutex:
            if self._hang_ups is None:
                self._hang_ups = hang_ups()
            if self._thread is None or not self._thread.is_alive():
                self._start(self._hang_ups)
            self._sessions[id(session)] = weakref.ref(session)
            if session.socket is not None:
                keep_alive(session.socket)
                self._hang_ups.add(session.socket.fileno())

    def _start(self, waiting: HangUps) -> None:
        self._last_round = clock()
        thread = threading.Thread(
            target=_run, args=(weakref.ref(self), waiting, self._tick), name="dlock-watch", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise LockConnectionError(
                f"nothing can watch over a lock session: {error}. Raise the limit on threads or processes"
            ) from error
        self._thread = thread

    def remove(self, session: Watched) -> None:
        """Watch it no more: it ends, and its socket with it."""
        with self._mutex:
            self._suspects.pop(id(session), None)
            known = self._sessions.pop(id(session), None)
            if known is not None and session.socket is not None and self._hang_ups is not None:
                self._hang_ups.remove(session.socket.fileno())

    def after_fork(self) -> None:
        """Let go of the parent's watch in a forked child, without a change to it."""
        if self._hang_ups is not None:
            self._hang_ups.close()

    def round(self) -> bool:
        """Look at every session; False when there is none left, and the thread may end."""
        self._tell_time()
        for session in self.sessions:
            try:
                self._look_at(session)
            except Exception:
                log.exception("the watch over a session failed")
        if reaper.stuck:  # with the end of our own provider, perhaps
            reaper.start()
        goes_on = False
        try:
            if self._each_round is not None and (then := self._each_round()) is not None:
                goes_on = then()
        except Exception:
            log.exception("what follows a round of the watch failed")
        with self._mutex:
            if self._thread is not threading.current_thread():
                return False  # its start was interrupted, and another has replaced it
            if not (self._sessions or goes_on):
                self._thread = None
            return self._thread is not None

    def _tell_time(self) -> None:
        """Notice that this process was frozen, and give a moment to the readers of what came meanwhile.

        Where every round is late, because something else takes the whole of the process, time goes on all the same.
        """
        now, usual = clock(), 2 * self._tick
        gap = now - self._last_round
        if gap > usual:
            self.frozen += gap - usual
            if self._grace_ends <= self._last_round:
                self._grace_ends = now + self._tick
        self._last_round = now

    def _look_at(self, session: Watched) -> None:
        if session.ended:
            self.remove(session)
        elif session.hung_up():
            self._report(session)
        elif self._is_overdue(session) or (session.locks and session.expired()):
            log.warning("no sign of life from a lock session for %.1f s", clock() - session.proof)
            session.silent = True
            self._report(session)
        elif session.due == inf and not session.waits():
            silent = session.locks and clock() - session.proof > self._pulse
            if silent or session.stirs():
                session.beat()

    def _is_overdue(self, session: Watched) -> bool:
        """Tell whether an answer is overdue that would have been read: its reader ran meanwhile."""
        now, due = self.time(), session.due
        if now <= due - 2 * self._tick:
            self._suspects.pop(id(session), None)
            return False
        suspect = self._suspects.get(id(session))
        if suspect is None or suspect.due != due:
            suspect = self._suspects[id(session)] = _Suspect(due, self._tick / 2)
        overdue = now > due and suspect.has_run() and clock() > self._grace_ends
        suspect.call(session)
        return overdue

    def _report(self, session: Watched) -> None:
        dead = self._dead()
        if dead is not None:
            dead(session)


class _Suspect:
    """A statement whose answer is nearly overdue, and how often its reader has run since."""

    def __init__(self, due: float, pause: float) -> None:
        self.due = due
        self._pause = pause
        self._runs = 0
        self._next_call = 0.0

    def has_run(self) -> bool:
        """Tell whether the reader has run for a while."""
        return self._runs > 1

    def call(self, session: Watched) -> None:
        """Ask the reader for a sign; again some time after the last one."""
        if clock() >= self._next_call:
            self._next_call = inf
            session.call_reader(self._ran)

    def _ran(self) -> None:
        self._runs += 1
        self._next_call = clock() + self._pause


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
