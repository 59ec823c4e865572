"""Acquires and releases for one provider: first the queue of this process, then the server.

This is blocking code; a context decides where it waits and where it talks to the server.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import platform
import sys
import threading
import warnings
import weakref
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from ..dialects import find_dialect, refusal_to_fence, refusal_to_share
from ..dialects.failures import answered, connection_lost, first_line, from_handler, lost, named
from ..dialects.postgresql import PostgreSQL
from ..dialects.sqlite import SQLite
from ..errors import LockConnectionError, LockError, LockStateError, UnsupportedError, shown
from ..keys import check_key, label
from ..sessions.pool import Opener, SessionPool, open_session
from ..sessions.timeouts import Deadline
from ..sessions.watch import Watch
from ..sessions.workers import Serial, Workers, reaper
from .contexts import BLOCKING, GREENLET
from .events import Listeners
from .naming import Naming
from .policy import ANSWERS, POLL_LAST, Gate, LoopGate, Policy, Sharing
from .state import Entries, Request, State, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from ..dialects.base import ServerDialect, Session
    from .contexts import Context
    from .options import Options

__all__ = ["Coordinator"]

log = logging.getLogger("dlock")

# How often and how long a process hands a lock on before it asks the server again.
TURN_GRANTS, TURN_SECONDS = 64, 0.02
# Longest name of a PostgreSQL session, in bytes.
LABEL_BYTES = 63
# How long a single try waits for an answer of the server that is on its way to others, in seconds.
ANSWER_SECONDS = 10.0
# How many keys, and how long ones, are mapped only once.
CACHED_REQUESTS, CACHED_LENGTH = 256, 256


class Coordinator:
    """Knows one database's locks, and all that this process asks of them."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine = engine
        self.options = options
        self.locks = find_dialect(engine.dialect.name)
        self.listeners = Listeners(engine.dialect.name)
        if options.lease is not None and not self.locks.capabilities.lease:
            raise UnsupportedError(
                f"lease={options.lease}: {engine.dialect.name} cannot end a silent session; "
                "PostgreSQL, MySQL and MariaDB can"
            )
        self._map_once = lru_cache(CACHED_REQUESTS)(self._map)
        self._closed = False
        self._sessions: set[Session] = set()
        self._start()
        _coordinators.add(self)
        self.end_sessions = partial(_end_all, self._sessions, self.locks)
        """Ends all sessions, when this is garbage or as the interpreter ends."""
        weakref.finalize(self, reaper.put, self.end_sessions).atexit = False

    def _start(self) -> None:
        options = self.options
        self._pid = os.getpid()
        # Where the server does not queue, each turn is followed by a pause, so it may be long.
        grants = TURN_GRANTS if self.locks.capabilities.server_waits else sys.maxsize
        if not options.share_sessions:
            grants = 0  # a lock must be on its owner's session
        self.entries = Entries(turn_grants=grants, turn_seconds=TURN_SECONDS)
        self.workers = Workers()
        self._naming: Naming | None = None
        if isinstance(self.locks, PostgreSQL) and options.show_keys and options.heartbeat is not None:
            self._naming = Naming(self.entries, self.workers, options.prefix, self.session_label)
        self._watch = Watch(
            self._dead,
            heartbeat=options.heartbeat,
            lease=options.lease,
            workers=self.workers,
            each_round=self._each_round,
        )
        # Replaced as a whole, under the mutex, so that every thread may go through it at any time.
        self._policies: dict[object, Policy] = {}
        self._mutex = threading.Lock()
        self._losses = Serial("dlock-losses")
        self._suite = f"dlock-{options.adapter}" if options.adapter else "dlock"
        self._whereabouts = f" {platform.node()[:24]}:{self._pid}"

    def _each_round(self) -> bool:
        """Do what the watch's thread does beside its watch; True when some of it is left."""
        self._start_stuck()
        if self._naming is not None:
            self._naming.round()
        return self._losses.stuck

    def _start_stuck(self) -> None:
        """Start again what once found no thread."""
        if self._losses.stuck or reaper.stuck:
            self._losses.start()
            reaper.start()

    def after_fork(self) -> None:
        """Start anew in a forked child: empty maps, new mutexes, none of the parent's sessions."""
        let_go = [policy.pool.park_all for policy in self._policies.values()]
        let_go += [session.park for session in self._watch.sessions]  # those being opened, too
        let_go += [self._watch.after_fork, self.listeners.after_fork, self.locks.after_fork]
        for step in let_go:
            try:
                step()
            except Exception:
                log.exception("a forked child could not let go of something of its parent's")
        self._start()

    def request(self, key: object, *, shared: bool, fencing: bool) -> Request:
        """Check a key and map it.

        Raises:
            LockKeyError: It cannot name a lock.
            UnsupportedError: The database has no shared locks, or no fencing tokens.
        """
        map_key = self._map_once if type(key) is str and len(key) <= CACHED_LENGTH else self._map
        return map_key(key, shared=shared, fencing=fencing)

    def _map(self, key: object, *, shared: bool, fencing: bool) -> Request:
        self.check_shared(key, shared=shared)
        if fencing and shared:
            raise UnsupportedError(
                f"key {shown(key)}: a shared lock has no fencing token; ask for it exclusively", key=key
            )
        if fencing and not self.locks.capabilities.fencing:
            raise UnsupportedError(f"key {shown(key)}: {refusal_to_fence(self.locks)}", key=key)
        checked = check_key(key)
        prefix = self.options.prefix
        text = label(prefix, checked) if self.options.show_keys else ""
        return Request(checked, self.locks.name(prefix, checked), text, shared, fencing)

    def check_shared(self, key: object, *, shared: bool) -> None:
        """Refuse a shared lock where there is none."""
        if shared and not self.locks.capabilities.shared:
            raise UnsupportedError(f"key {shown(key)}: {refusal_to_share(self.locks)}", key=key)

    def acquire(self, ticket: Ticket) -> bool:
        """Acquire; False when it was not free in time.

        Raises:
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked.
            LockStateError: It was called off, or this provider is or was closed.
            UnsafeEnvironmentError: A lock there would protect nothing.
        """
        if self._pid != os.getpid():  # a fork that ran no Python hook
            self.after_fork()
        if self._closed:
            raise self._state_error(ticket, "this lock provider is closed")
        self._start_stuck()
        if ticket.context.called_away:  # before the ticket was there to be disowned
            ticket.disown()
        loop = ticket.loop = asyncio.get_running_loop() if self.engine.dialect.is_async else None
        ticket.policy = self._policies.get(loop) or self._policy(loop)
        try:
            if (
                self.entries.ask(ticket)
                and (ticket.latch is None or self._queue(ticket))
                and ((ticket.hold is not None and not ticket.again) or ticket.context.call(self._ask, ticket))
            ):
                return True
        except BaseException as error:
            self._abandon(ticket, error)
            if isinstance(error, LockError) and error.key is None:
                raise named(error, ticket.key) from error
            raise
        if self._closed:
            raise self._state_error(ticket, "this lock provider was closed")
        if ticket.withdrawn:
            called_off = self._state_error(ticket, "close() was called while acquire() was under way")
            self._abandon(ticket, called_off)  # a lock may have been passed to it
            raise called_off
        return False

    @staticmethod
    def _state_error(ticket: Ticket, what: str) -> LockStateError:
        return LockStateError(f"key {shown(ticket.key)}: {what}", key=ticket.key)

    def _queue(self, ticket: Ticket) -> bool:
        """Wait for our turn in this process; False when time is over."""
        assert ticket.latch is not None
        if not ticket.latch.wait(Deadline(ANSWER_SECONDS) if ticket.once else ticket.deadline):
            return self.entries.leave(ticket) in (State.HELD, State.PASSED)
        return ticket.state is not State.GONE

    def _ask(self, ticket: Ticket) -> bool:
        """Ask the server, as this process's only asker for this key."""
        granted = reusable = False
        try:
            if ticket.yields and not self.locks.capabilities.server_waits:  # our turn is over: let others in
                ticket.context.inner.pause(min(POLL_LAST, ticket.deadline.remaining() or POLL_LAST))
            granted = ticket.policy.wait(ticket) if ticket.again else ticket.policy.attempt(ticket)
            if not (granted or ticket.once) and self.entries.waiting(ticket):
                while not (granted or ticket.state is not State.ASKING or ticket.deadline.passed or self._closed):
                    granted = ticket.policy.wait(ticket)
            reusable = not granted and self.entries.leave(ticket) is State.ASKING
        except BaseException as error:
            reusable = isinstance(error, (*ANSWERS, asyncio.CancelledError)) or answered(error)
            if (ticket.state is State.GONE or self._closed) and isinstance(error, Exception):
                reusable = True
                return False  # the asker was called off, or all were
            ours = named(error, ticket.key)
            if ours is error:
                raise
            raise ours from error
        finally:
            # Else it holds the lock as it is called away, or has not put it back.
            if not (granted or ticket.again) and self.entries.leave(ticket) is not State.HELD:
                ticket.policy.settle(ticket, reusable=reusable)
        return granted

    def _abandon(self, ticket: Ticket, error: BaseException) -> None:
        """Leave no trace of an asker that an exception takes away; what fails here does not replace that."""

        def unlock() -> None:
            try:
                self._unlock(ticket)
            except Exception as failure:
                error.add_note(f"dlock: and then the release of key {shown(ticket.key)} failed: {failure}")
                log.exception("release of key %s failed after %s", shown(ticket.key), type(error).__name__)

        ticket.lock = None  # its user never had it, and hears of no loss
        before = self.entries.leave(ticket)
        if before in (State.HELD, State.PASSED):
            before = self.entries.release(ticket)
        if before is State.ENDING:
            ticket.context.afterwards(unlock)
        elif before is State.LOST:
            ticket.policy.settle(ticket, reusable=True)
        elif before is State.ASKING:
            ticket.context.interrupt(ticket.interrupt)

    def withdraw(self, ticket: Ticket) -> bool:
        """Call off an acquisition that is under way, from another thread; False when it holds by now, or is over.

        The interrupt ends no wait but its own, so it may be repeated as often as need be.
        """
        ticket.disown()
        if self.entries.leave(ticket, withdrawn=True) is State.QUEUED:
            assert ticket.latch is not None
            ticket.latch.set()
        elif ticket.withdrawn:
            ticket.interrupt()
        return ticket.withdrawn

    def release(self, ticket: Ticket, context: Context) -> None:
        """Release.

        Raises:
            LockLostError: The server did not hold the lock for us any more.
        """
        if ticket.pid != os.getpid():
            return  # a forked child's copy: the lock is the parent's
        if ticket.session is not None and ticket.session.expired():
            self._dead(ticket.session)
        match self.entries.release(ticket):
            case State.LOST:
                ticket.policy.settle(ticket, reusable=True)
                self.listeners.ended(ticket, lost=True)
                raise lost(ticket.key, "its session ended")
            case State.ENDING:
                ticket.context = context
                context.finish(self._unlock, ticket)
            case _:  # handed on
                self.listeners.ended(ticket, lost=False)

    def _unlock(self, ticket: Ticket) -> None:
        gone = False
        try:
            intact = ticket.policy.unlock(ticket)
            gone = not intact
        except Exception as error:
            gone = True
            if connection_lost(error):
                raise lost(ticket.key, "its session ended") from error
            raise
        finally:
            self.entries.ended(ticket)
            self.listeners.ended(ticket, lost=gone)
            if gone:
                self._report(ticket.lock_object())
                if self._losses.stuck:  # no thread, and perhaps no session whose watch would try again
                    self._losses.finish()
        if not intact:
            raise lost(ticket.key, "the server says that our session did not hold it")

    def verify(self, ticket: Ticket, context: Context) -> bool:
        """Ask the server whether it holds the lock for us still; False when it was lost, which is reported then.

        Raises:
            LockConnectionError: The database cannot be asked; where its session is in doubt, the lock is lost.
        """
        if ticket.session is not None and ticket.session.expired():
            self._dead(ticket.session)
        return ticket.state is State.HELD and context.call(self._holds, ticket, context.inner)

    def _holds(self, ticket: Ticket, context: Context) -> bool:
        try:
            return context.shield(partial(ticket.policy.holds, ticket))
        except (DBAPIError, OSError) as error:
            if from_handler(error):
                raise
            raise LockConnectionError(
                f"key {shown(ticket.key)}: the database does not say whether the lock is held: {first_line(error)}",
                key=ticket.key,
            ) from error

    def release_abandoned(self, ticket: Ticket) -> None:
        """Release a lock whose object is garbage."""
        if ticket.loop is None or not ticket.loop.is_closed():  # else the watch ends its session
            self.release(ticket, BLOCKING if ticket.loop is None else GREENLET)

    def held_locks(self) -> list[Any]:
        """Return the lock objects that hold a lock now."""
        locks = [ticket.lock_object() for ticket in self.entries.held()]
        return [lock for lock in locks if lock is not None]

    def _dead(self, session: Any) -> None:
        """End a session that the server has ended, or should have; or that does not answer when it is opened."""
        for policy in self._policies.values():
            if session in policy.pool:
                policy.pool.end(session)
        session.end()
        self._session_ended(session)  # another thread may be on its way to say so

    def _session_ended(self, session: Session) -> None:
        """Report the loss of all locks of an ended session, in one thread: a callback may take its time."""
        lost = self.entries.lose(session)
        for _, lock in lost:  # first of all, since what goes on is not protected
            if lock is not None:
                lock._stop_body()  # noqa: SLF001 - a lock's public names are its users'
        for ticket, _ in lost:
            log.error("lost the lock of key %s: its session ended", shown(ticket.key))
            self._losses.put(partial(self.listeners.ended, ticket, lost=True))
        for ticket, lock in lost:
            self._report(lock)
            if ticket.loop is not None and ticket.loop.is_closed():
                self._losses.put(partial(_warn_of_closed_loop, ticket.key))

    def _report(self, lock: Any) -> None:
        """Call on_lost, unless the lock object is garbage."""
        if lock is not None:
            self._losses.put(lock._call_on_lost)  # noqa: SLF001 - a lock's public names are its users'

    def close(self) -> None:
        """End all sessions: every lock is free, and every waiter gets an error."""
        self._closed = True
        for ticket in self.entries.close():
            log.warning("lock provider closed while key %s was held", shown(ticket.key))
            self.listeners.ended(ticket, lost=True)
        for policy in self._policies.values():
            policy.pool.end_all()
        self.locks.close()

    def _policy(self, loop: object) -> Policy:
        """Return the sessions that an asker can use: those of its event loop, or of all threads."""
        with self._mutex:
            before = self._policies
            open_ones = {key: one for key, one in before.items() if not _closed_loop(key)}
            policy = open_ones.setdefault(loop, before.get(loop) or self._new_policy())
            self._policies = open_ones
        for key, one in before.items():
            if key not in open_ones:
                one.pool.end_all()
        return policy

    def _new_policy(self) -> Policy:
        pool: SessionPool
        opener = self._opener(lambda session: pool.keep(session))  # noqa: PLW0108 - the two need each other
        pool = SessionPool(opener, self._session_ended, self._sessions, self.options.max_sessions)
        gate = LoopGate if self.engine.dialect.is_async else Gate
        if not self.locks.capabilities.server_waits:
            return Policy(pool, self.entries, str, Sharing.NONE, gate)
        sharing = Sharing.ALL if self.options.share_sessions else Sharing.OWNER
        return Policy(pool, self.entries, self.session_label, sharing, gate)

    def _opener(self, keep: Callable[[Session], object]) -> Callable[[float], Session]:
        label, unsafe = self.session_label(""), self.options.allow_unsafe
        if isinstance(self.locks, SQLite):
            open_file = partial(self.locks.open, self.engine, self.engine.pool.recreate(), label, allow_unsafe=unsafe)

            def watched(_seconds: float) -> Any:
                session: Any = open_file()
                self._watch.add(session)
                return session

            return watched
        opened = partial(
            open_session, self.engine, locks=self.locks, watch=self._watch, label=label, allow_unsafe=unsafe
        )
        return Opener(self.engine, opened, keep, self.workers)

    def session_label(self, text: str) -> str:
        """Return what the server's views show for a session: suite, key, host and process."""
        readable = f" {text}".encode("ascii", "backslashreplace").decode().rstrip()
        return f"{self._suite}{readable[: LABEL_BYTES - len(self._suite) - len(self._whereabouts)]}{self._whereabouts}"


def _closed_loop(loop: object) -> bool:
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()


def _warn_of_closed_loop(key: object) -> None:
    warnings.warn(
        f"dlock: key {shown(key)}: its event loop was closed while the lock was held, and the lock is lost; "
        "release it before the loop ends",
        ResourceWarning,
        stacklevel=1,
    )


def _end_all(sessions: set[Session], locks: ServerDialect | SQLite) -> None:
    for session in list(sessions):
        session.end()
    locks.close()


_coordinators: weakref.WeakSet[Coordinator] = weakref.WeakSet()


def _end_at_exit() -> None:
    for coordinator in list(_coordinators):
        coordinator.end_sessions()
    reaper.finish()


atexit.register(_end_at_exit)


def _after_fork_in_child() -> None:
    for coordinator in list(_coordinators):
        coordinator.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
