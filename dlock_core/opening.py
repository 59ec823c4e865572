"""Opening a server session for locks: connected, guarded and prepared.

It comes out of a private pool, a `recreate()` of the engine's, so that the engine's creator, events
and credentials apply while no slot of the application's pool is taken, not even at the moment of
opening.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from .failures import connecting
from .session import SqlSession
from .sighting import Sighting
from .urls import shown_url

if TYPE_CHECKING:
    from sqlalchemy import Engine, Pool

    from .dialects.base import ServerDialect
    from .watch import Care

__all__ = ["open_session"]


def open_session(
    engine: Engine, pool: Pool, locks: ServerDialect, care: Care | None, *, label: str, unsafe_ok: bool
) -> SqlSession:
    """Open a session of our own, guard it, and only then set anything on it.

    The order matters: through a transaction pooler a setting would stay on a server session that
    the application uses next.

    Raises:
        LockConnectionError: The database cannot be reached.
        UnsafeEnvironmentError: A lock there would protect nothing.
    """
    session = _connected(engine, pool, locks, care, label)
    try:
        if locks.guard(
            session,
            unsafe_ok=unsafe_ok,
            another=lambda: _connected(engine, pool, locks, None, label),
        ):
            locks.prepare(session, label=label, lease=care and care.lease)
    except BaseException:
        session.end()
        raise
    return session


def _connected(engine: Engine, pool: Pool, locks: ServerDialect, care: Care | None, label: str) -> SqlSession:
    """Return a session in autocommit, on a driver connection that no pool knows."""
    with _sighting(engine) as sighting:
        connection = _take(engine, pool)
        seen = None if sighting is None else sighting.found()
    try:
        engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
    except BaseException:
        engine.dialect.do_terminate(connection)
        raise
    return SqlSession(engine, connection, locks, care, label, seen=seen)


def _sighting(engine: Engine) -> AbstractContextManager[Sighting | None]:
    hidden = engine.dialect.name in ("mssql", "oracle")
    return Sighting(in_turn=not engine.dialect.is_async) if hidden else nullcontext()


def _take(engine: Engine, pool: Pool) -> Any:
    failure = f"cannot open a lock session on {shown_url(engine.url)}"
    with connecting(failure, ". Check that the server runs and that the URL is right"):
        pooled = pool.connect()
    connection = pooled.dbapi_connection
    assert connection is not None
    pooled.detach()
    return connection
