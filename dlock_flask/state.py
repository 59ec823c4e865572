"""What one application has: its settings, a lock provider for each of its databases, its waiting room."""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from flask import current_app

from dlock_core import LockProvider
from dlock_core.adapters import Registry, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

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
        self.routes_are_sound = False
        self._providers: Registry[str | None, LockProvider] = Registry()

    def provider(self, bind: str | None) -> LockProvider:
        """Return the locks of a bind, of the default database without one; needs the application context."""
        if bind is None and self._engine is None:
            bind = self.settings.bind_key
        return self._providers.get(bind, partial(self._make, bind))

    def _make(self, bind: str | None, cleanup: ExitStack) -> LockProvider:
        engine = self._engine_of(bind, cleanup)
        if _in_memory(engine.url) and not (self.app.testing or self.app.debug):
            log.warning("%s: locks of a database in memory are known to this process only", self.app.name)
        return cleanup.enter_context(LockProvider(engine, adapter="flask", **self.settings.provider))

    def _engine_of(self, bind: str | None, cleanup: ExitStack) -> sa.Engine:
        if bind is not None or self._engine is None:
            return self._engine_of_bind(bind)
        if isinstance(self._engine, sa.Engine):
            return self._engine
        engine = sa.create_engine(self._engine, **self.settings.engine_options)
        cleanup.callback(engine.dispose)
        return engine

    def _engine_of_bind(self, bind: str | None) -> sa.Engine:
        db = self._db or self.app.extensions.get("sqlalchemy")
        if db is None:
            asked = "" if bind is None else f"bind={shown(bind)}: "
            raise RuntimeError(
                f"{asked}the application {self.app.name!r} has no Flask-SQLAlchemy: "
                "initialise it, or give DLock an engine, or set DLOCK_URL"
            )
        engines: Mapping[str | None, sa.Engine] = db.engines
        if bind not in engines:
            there = ", ".join(repr(name) for name in engines if name is not None) or "none"
            if bind is None:
                raise LookupError(f"no SQLALCHEMY_DATABASE_URI: set it, or DLOCK_BIND_KEY to one of the binds: {there}")
            raise LookupError(f"bind={shown(bind)}: not in SQLALCHEMY_BINDS; the binds are {there}")
        return engines[bind]

    def close(self) -> None:
        """End all lock sessions; a later lock opens new ones."""
        self._providers.close()


def _in_memory(url: sa.URL) -> bool:
    if url.get_backend_name() != "sqlite":
        return False
    return url.database in {None, "", ":memory:"} or url.query.get("mode") == "memory"


class WaitingRoom:
    """Seats for the requests of this process that wait for a lock; nothing enters where the limit is None."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._set_up()

    def _set_up(self) -> None:
        self._pid = os.getpid()
        self._seats = threading.Semaphore(self.limit or 0)

    def enter(self) -> bool:
        """Take a seat; False when all are taken."""
        if self._pid != os.getpid():
            self._set_up()  # forked from a server that was preloaded
        return self._seats.acquire(blocking=False)

    def leave(self) -> None:
        """Give the seat back."""
        self._seats.release()
