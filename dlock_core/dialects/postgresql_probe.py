"""Probes: does a lock on this server, and through whatever stands before it, protect anything?

A driver that is promised one backend and answered by another talks to a pooler. Whether that pooler
gives each client a server session of its own (PgBouncer's session mode) or lends one for a
transaction at a time, it does not say; two clients find out. Nothing is set on any session before.
https://www.pgbouncer.org/features.html
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..errors import LockConnectionError, UnsafeEnvironmentError
from .base import sqlstate

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import TextClause

    from .base import EndableStatements, Statements

__all__ = ["check_locks", "check_pooler"]

# Who asks, in turn. An idle pooler in transaction mode answers both clients from one backend, or
# deals its backends out in turn, and then "AAA" shows more than one.
TURNS = "ABBAAAB"
# Several texts, each asked a few times: psycopg prepares a statement that it sees more often, and
# that would stay behind on a server session that others use next.
ASK_BACKEND = (
    text("SELECT pg_catalog.pg_backend_pid()"),
    text("SELECT pg_catalog.pg_backend_pid() AS backend"),
    text("SELECT pg_catalog.pg_backend_pid() AS pid"),
)
TAKE = text("SELECT pg_catalog.pg_try_advisory_lock(CAST(:name AS bigint))")
# CASE fixes the order: the lock is taken before the table is read, and ends with the statement. With
# two numbers it is in a space of its own, where it meets no key of anybody's.
TAKE_AND_LOOK = text("""
    SELECT CASE WHEN pg_catalog.pg_try_advisory_xact_lock(CAST(:name AS integer), 0) THEN (
        SELECT count(*) FROM pg_catalog.pg_locks
        WHERE locktype = 'advisory' AND granted AND pid = pg_catalog.pg_backend_pid()
    ) END,
    pg_catalog.has_function_privilege('pg_catalog.pg_try_advisory_lock(bigint)', 'EXECUTE')
    AND pg_catalog.has_function_privilege('pg_catalog.pg_advisory_lock(bigint)', 'EXECUTE')
    AND pg_catalog.has_function_privilege('pg_catalog.pg_advisory_unlock(bigint)', 'EXECUTE')
""")
LOOK = text("""
    SELECT count(*) FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND granted AND pid = :backend AND pg_catalog.pg_sleep(0.05) IS NOT NULL
""")
# How often it is looked, every 50 ms, whether a pooler frees what its client left.
LOOKS = 40
# How long a pooler may keep the second client waiting, in seconds.
PATIENCE = 5.0

INSUFFICIENT_PRIVILEGE = "42501"
MISSING_RIGHT = (
    "this user may not take advisory locks: GRANT EXECUTE ON FUNCTION pg_try_advisory_lock(bigint), "
    "pg_advisory_lock(bigint), pg_advisory_unlock(bigint), pg_try_advisory_xact_lock(int, int) to it, and for readers "
    "of the first three with _shared"
)
ADVICE = "Give the lock provider a URL of its own that reaches the server directly"


def check_pooler(session: Statements, another: Callable[[], EndableStatements]) -> None:
    """Refuse a pooler that lends one server session to several clients, or keeps what they leave.

    Raises:
        UnsafeEnvironmentError: It does, or there is no telling.
    """
    second = another()
    alarm = threading.Timer(PATIENCE, second.hang_up)
    alarm.daemon = True
    alarm.start()
    try:
        backend = _backend_of_its_own(session, second)
        second.first(TAKE, name=secrets.randbits(62))
    except (DBAPIError, LockConnectionError) as error:
        raise UnsafeEnvironmentError(
            f"a connection pooler stands between us and PostgreSQL, and gave no second session to probe it: {error}. "
            f"{ADVICE}, or let it open more sessions"
        ) from error
    finally:
        alarm.cancel()
        second.end()
    if not any(session.first(LOOK, backend=backend)[0] == 0 for _ in range(LOOKS)):
        raise UnsafeEnvironmentError(
            "a connection pooler stands between us and PostgreSQL that keeps the locks of a client that is gone. "
            f"{ADVICE}, or have the pooler reset its sessions (PgBouncer: server_reset_query = DISCARD ALL)"
        )


def _backend_of_its_own(session: Statements, second: Statements) -> int:
    seen: dict[str, set[int]] = {"A": set(), "B": set()}
    for statement in ASK_BACKEND:
        for turn in TURNS:
            seen[turn].add((session if turn == "A" else second).first(statement)[0])
    if len(seen["A"]) > 1 or len(seen["B"]) > 1 or seen["A"] == seen["B"]:
        raise UnsafeEnvironmentError(
            "a connection pooler stands between us and PostgreSQL and lends a session to several clients (transaction "
            f"pooling): two of them would hold one lock. {ADVICE}, or through a pool in session mode"
        )
    return seen["B"].pop()


def check_locks(session: Statements) -> None:
    """Refuse a server that takes the statements and locks nothing, or does not let this user lock.

    Raises:
        UnsafeEnvironmentError: There are no advisory locks for us.
    """
    try:
        seen, allowed = session.first(TAKE_AND_LOOK, name=secrets.randbits(30))
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        if sqlstate(error) == INSUFFICIENT_PRIVILEGE:
            raise UnsafeEnvironmentError(MISSING_RIGHT) from error
        raise UnsafeEnvironmentError(f"{_look_alike(session)} ({error.orig})") from error
    if not allowed:
        raise UnsafeEnvironmentError(MISSING_RIGHT)
    if not seen:
        raise UnsafeEnvironmentError(_look_alike(session))


def _look_alike(session: Statements) -> str:
    version = session.first(VERSION)[0]
    return f"this server ({version}) has no working advisory locks: use a PostgreSQL server for locks"


VERSION: TextClause = text("SELECT version()")
