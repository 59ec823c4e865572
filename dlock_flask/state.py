"""What one application has: its settings, a lock provider for each of its databases, its waiting room."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import current_app

from dlock_core import LockProvider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    from .settings import Settings

__all__ = ["AppState", "WaitingRoom", "current_state"]

log = logging.getLogger("dlock.flask")
EXTENSION = "dlock"


def current_state() -> AppState:
    """Return what the current application has.

    Raises:
        RuntimeError: There is no application context, or its application has no DLock.
    """
    found: AppState | None = current_app.extensions.get(EXTENSION)
    if found is None:
        raise RuntimeError(f"the application {current_app.name!r} has no DLock: call dlock.init_app(app)")
    return found


class AppState:
    """One application's locks; its engines are looked up when a lock first needs them."""

    def __init__(self, app: Flask, settings: Settings, db: SQLAlchemy | None, engine: Any) -> None:
        self.app = app
        self.settings = settings
        self.room = WaitingRoom(settings.max_waiters)
        self._db = db
        self._engine = engine if engine is not None else settings.url
        self._providers: dict[str | None, LockProvider] = {}
        self._owned: list[sa.Engine] = []

    def provider(self, bind: str | None) -> LockProvider:
        """Return the locks of a bind, of the default database without one; needs the application context."""
        if bind is None and self._engine is None:
            bind = self.settings.bind_key
        found = self._providers.get(bind)
        return self._providers.setdefault(bind, self._make(bind)) if found is None else found

    def _make(self, bind: str | None) -> LockProvider:
        engine = self._engine_of(bind)
        if _in_memory(engine.url) and not (self.app.testing or self.app.debug):
            log.warning("%s: locks of a database in memory are known to this process only", self.app.name)
        settings = self.settings
        return LockProvider(
            engine,
            prefix=settings.prefix,
            heartbeat=settings.heartbeat,
            lease=settings.lease,
            max_sessions=settings.max_sessions,
            adapter="flask",
        )

    def _engine_of(self, bind: str | None) -> sa.Engine:
        if bind is not None or self._engine is None:
            return self._engine_of_bind(bind)
        if isinstance(self._engine, sa.Engine):
            return self._engine
        engine = sa.create_engine(self._engine, **self.settings.engine_options)
        self._owned.append(engine)
        return engine

    def _engine_of_bind(self, bind: str | None) -> sa.Engine:
        db = self._db or self.app.extensions.get("sqlalchemy")
        if db is None:
            asked = "" if bind is None else f"bind={bind!r}: "
            raise RuntimeError(
                f"{asked}the application {self.app.name!r} has no Flask-SQLAlchemy: "
                "initialise it, or give DLock an engine, or set DLOCK_URL"
            )
        engines: Mapping[str | None, sa.Engine] = db.engines
        if bind not in engines:
            there = ", ".join(repr(name) for name in engines if name is not None) or "none"
            if bind is None:
                raise LookupError(f"no SQLALCHEMY_DATABASE_URI: set it, or DLOCK_BIND_KEY to one of the binds: {there}")
            raise LookupError(f"bind={bind!r}: not in SQLALCHEMY_BINDS; the binds are {there}")
        return engines[bind]

    def close(self) -> None:
        """End all lock sessions; a later lock opens new ones."""
        while self._providers:
            self._providers.popitem()[1].close()
        while self._owned:
            self._owned.pop().dispose()


def _in_memory(url: sa.URL) -> bool:
    if url.get_backend_name() != "sqlite":
        return False
    return url.database in {None, "", ":memory:"} or url.query.get("mode") == "memory"


class WaitingRoom:
    """Counts the requests of this process that wait for a lock, up to a limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._waiting = 0

    def enter(self) -> bool:
        """Take a seat; False when all are taken."""
        if self._pid != os.getpid():
            self._start()  # forked from a server that was preloaded
        with self._mutex:
            if self.limit is not None and self._waiting >= self.limit:
                return False
            self._waiting += 1
        return True

    def leave(self) -> None:
        """Give the seat back."""
        with self._mutex:
            self._waiting -= 1
