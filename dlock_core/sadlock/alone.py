"""Locks in a mode of their own, for a Session bound to an engine: each on a server session of its own.

The bookkeeping of this process (`own.py`) knows shared and exclusive locks only; here the server alone
decides who goes with whom.
"""

from __future__ import annotations

import os
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ..contexts import see_through
from ..dialects import find_dialect
from ..failures import connection_lost, lost, named
from ..forgotten import Forgotten
from ..opening import open_session
from ..session import SqlSession
from .caller import ANSWERS
from .questions import locks_on_caller, refuse_second, wait_for, wait_for_upgrade

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from .questions import Ask, LocksOnCaller

__all__ = ["AloneHold", "acquire_alone"]

# What each Session holds in this way.
_names: WeakKeyDictionary[object, set[int | str]] = WeakKeyDictionary()


class AloneHold:
    """A lock on a server session of its own, as its holder sees it."""

    ends_with_transaction = False
    to_be_released = True

    def __init__(self, session: SqlSession, locks: LocksOnCaller, ask: Ask, owner: object) -> None:
        self.pid = os.getpid()
        self._session = session
        self._locks = locks
        self._request = ask.request
        _names.setdefault(owner, set()).add(ask.request.name)
        self._end = partial(_end, session, weakref.ref(owner), ask.request.name)
        self._finalizer = weakref.finalize(self, Forgotten(ask.request.key, self._end, pid=self.pid, loop=session.loop))
        self._finalizer.atexit = False  # the server frees the locks of a process that ends

    @property
    def alive(self) -> bool:
        return not (self._session.ended or self._session.hung_up())

    def upgrade(self, ask: Ask) -> bool:
        """Make it exclusive; a session in doubt is ended."""
        try:
            return wait_for_upgrade(self._session, self._locks, ask)
        except BaseException as error:
            if not isinstance(error, ANSWERS) or connection_lost(error):
                self._session.end()
            _raise_named(error, ask.request.key)
            raise

    def release(self, key: object) -> None:
        """Unlock and end the session, or say that the lock was lost."""
        self._finalizer.detach()
        try:
            intact = self.alive and self._unlock()
        except Exception as error:
            if not connection_lost(error):
                raise
            raise lost(key, "its session ended") from error
        finally:
            self._end()
        if not intact:
            raise lost(key, "its session ended")

    def _unlock(self) -> bool:
        request, session = self._request, cast("Any", self._session)
        return self._locks.release(session, request.name, shared=request.shared, recover=_nothing)


def _raise_named(error: BaseException, key: object) -> None:
    ours = named(error, key)
    if ours is not error:
        raise ours from error


def _end(session: SqlSession, owner: weakref.ref[object], name: int | str) -> None:
    session.end()
    living = owner()
    if living is not None:
        _names[living].discard(name)


def _nothing() -> None:
    """Recover nothing: the session is in autocommit."""


def acquire_alone(engine: Engine, owner: object, ask: Ask) -> AloneHold | None:
    """Take a lock on a server session of its own; None when it was not free in time.

    Raises:
        DeadlockError: The owner holds it already, or the wait could never end.
    """
    if ask.request.name in _names.get(owner, ()):
        refuse_second(ask)
        return None
    session = _open(engine)
    locks = locks_on_caller(engine.dialect.name, ask)
    hold = None
    try:
        if wait_for(session, locks, ask):
            hold = AloneHold(session, locks, ask, owner)
    except BaseException as error:
        _raise_named(error, ask.request.key)
        raise
    finally:
        if hold is None:
            session.end()
    return hold


def _open(engine: Engine) -> SqlSession:
    locks: Any = find_dialect(engine.dialect.name)
    opener = partial(open_session, engine, engine.pool.recreate(), locks, None, label="dlock", unsafe_ok=False)
    return see_through(opener, SqlSession.end) if engine.dialect.is_async else opener()
