"""PostgreSQL: session-level advisory locks on one signed 64-bit number per database.

A session that ends, for whatever reason, frees its locks. Waiters are served first come, first
served. https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS

`pg_advisory_lock` that ends in an error (55P03 lock_timeout, 57014 cancelled) may all the same have
been granted: the server's clean-up keeps a grant that raced with the error, and the session then
holds it. So after any error of a wait we unlock once; a server that answers "not yours" only warns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from .. import keys
from ..errors import DeadlockError, UnsafeEnvironmentError, UnsupportedError
from .base import PING, Capabilities, sqlstate
from .postgresql_probe import check_locks, check_pooler
from .postgresql_view import PostgreSQLView

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..keys import Key
    from .base import EndableStatements, Statements

__all__ = ["PostgreSQL", "milliseconds"]

# Largest lock_timeout; longer waits are asked for again.
MAX_MILLISECONDS = 2**31 - 1

ABOUT = text("SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(), pg_catalog.version()")

# Limits of the role or database that would end a waiter or an idle holder. Which of them exist
# depends on the version. A dead waiter leaves the queue only when the server looks for its client.
SETTINGS = text("""
    SELECT count(pg_catalog.set_config(s.name, v.value, false))
    FROM (VALUES ('statement_timeout', '0'), ('lock_timeout', '0'), ('transaction_timeout', '0'),
                 ('idle_in_transaction_session_timeout', '0'), ('idle_session_timeout', :idle),
                 ('tcp_keepalives_idle', '60'), ('tcp_keepalives_interval', '10'),
                 ('tcp_keepalives_count', '3'), ('application_name', :label)) AS v (name, value)
    JOIN pg_catalog.pg_settings AS s USING (name)
""")
CHECK_CLIENT = text("SELECT pg_catalog.set_config('client_connection_check_interval', '500', false)")

TRY = text("SELECT pg_catalog.pg_try_advisory_lock(CAST(:name AS bigint))")
TRY_SHARED = text("SELECT pg_catalog.pg_try_advisory_lock_shared(CAST(:name AS bigint))")
TRY_SHOWN = text("""
    SELECT CASE WHEN pg_catalog.pg_try_advisory_lock(CAST(:name AS bigint))
    THEN pg_catalog.set_config('application_name', :label, false) IS NOT NULL ELSE false END
""")
TRY_SHARED_SHOWN = text("""
    SELECT CASE WHEN pg_catalog.pg_try_advisory_lock_shared(CAST(:name AS bigint))
    THEN pg_catalog.set_config('application_name', :label, false) IS NOT NULL ELSE false END
""")
# CASE fixes the order: the limit is set, for this statement only, before the wait begins.
WAIT = text("""
    SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                 AND pg_catalog.set_config('application_name', :label, false) IS NOT NULL
    THEN pg_catalog.pg_advisory_lock(CAST(:name AS bigint)) END
""")
WAIT_SHARED = text("""
    SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                 AND pg_catalog.set_config('application_name', :label, false) IS NOT NULL
    THEN pg_catalog.pg_advisory_lock_shared(CAST(:name AS bigint)) END
""")
UNLOCK = text("SELECT pg_catalog.pg_advisory_unlock(CAST(:name AS bigint))")
UNLOCK_SHARED = text("SELECT pg_catalog.pg_advisory_unlock_shared(CAST(:name AS bigint))")
UNLOCK_SHOWN = text("""
    SELECT pg_catalog.pg_advisory_unlock(CAST(:name AS bigint)),
           pg_catalog.set_config('application_name', :label, false)
""")
UNLOCK_SHARED_SHOWN = text("""
    SELECT pg_catalog.pg_advisory_unlock_shared(CAST(:name AS bigint)),
           pg_catalog.set_config('application_name', :label, false)
""")
# In autocommit and after the grant, a transaction id is younger than every earlier holder's.
TOKEN = text("SELECT CAST(CAST(pg_catalog.pg_current_xact_id() AS text) AS bigint)")

INVALID_PARAMETER_VALUE = "22023"
UNDEFINED_OBJECT = "42704"


class PostgreSQL:
    """Advisory locks, exclusive and shared."""

    capabilities = Capabilities(
        mechanism="session-level advisory lock",
        shared=True,
        server_waits=True,
        lease=True,
    )
    ping = PING
    token = TOKEN
    view = PostgreSQLView()

    def name(self, prefix: str, key: Key) -> int:
        return keys.int64(prefix, key)

    def __init__(self) -> None:
        self._probed = False

    def lost(self, error: BaseException) -> bool:  # noqa: ARG002 - SQLAlchemy knows them all
        return False

    def guard(
        self, session: Statements, *, unsafe_ok: bool, another: Callable[[], EndableStatements] | None = None
    ) -> bool:
        pid, standby, version = session.first(ABOUT)
        ours = _backend_pid(session.driver_connection)
        direct = ours is None or ours == pid
        if unsafe_ok:
            return direct
        if standby:
            raise UnsafeEnvironmentError(
                "this PostgreSQL server is a standby: a lock here excludes nobody on the primary. "
                "Give the lock provider the primary's URL (target_session_attrs=read-write)"
            )
        if "cockroach" in version.lower():
            raise UnsafeEnvironmentError(
                "this server is CockroachDB, whose advisory locks do nothing: use a PostgreSQL server for locks"
            )
        if not self._probed:
            self._probe(session, direct, another)
        return True

    def _probe(self, session: Statements, direct: bool, another: Callable[[], EndableStatements] | None) -> None:
        """Find out, once for each provider, what a server cannot tell of itself."""
        if another is None:
            if not direct:
                raise UnsafeEnvironmentError(
                    "a connection pooler stands between us and PostgreSQL (the driver was promised another backend "
                    "than the one that answers): in transaction pooling two clients would hold one lock. "
                    "Use a LockProvider, which can tell session pooling from it, or connect directly"
                )
            return
        if not direct:
            check_pooler(session, another)
        check_locks(session)
        self._probed = True

    def prepare(self, session: Statements, *, label: str, lease: float | None) -> None:
        if lease is not None and (session.sqla.server_version_info or ()) < (14,):
            raise UnsupportedError("lease: PostgreSQL ends idle sessions (idle_session_timeout) from version 14 on")
        session.first(SETTINGS, label=label, idle=milliseconds(lease))
        try:
            session.first(CHECK_CLIENT)
        except DBAPIError as error:
            # Before version 14, and on servers whose platform cannot tell that a client has gone.
            if sqlstate(error) not in (UNDEFINED_OBJECT, INVALID_PARAMETER_VALUE):
                raise

    def acquire(
        self, session: Statements, name: int, *, shared: bool, timeout: float | None, label: str | None
    ) -> bool:
        if timeout == 0:
            return self._try(session, name, shared, label)
        wait = WAIT_SHARED if shared else WAIT
        try:
            session.first(wait, name=name, milliseconds=milliseconds(timeout), label=label or session.label)
        except DBAPIError as error:
            return self._not_granted(session, name, shared, error)
        return True

    @staticmethod
    def _try(session: Statements, name: int, shared: bool, label: str | None) -> bool:
        if label is None:
            return bool(session.first(TRY_SHARED if shared else TRY, name=name)[0])
        return bool(session.first(TRY_SHARED_SHOWN if shared else TRY_SHOWN, name=name, label=label)[0])

    def _not_granted(self, session: Statements, name: int, shared: bool, error: DBAPIError) -> bool:
        if error.connection_invalidated:
            raise error
        self.release(session, name, shared=shared, label=session.label)
        match sqlstate(error):
            case "55P03":  # lock_not_available
                return False
            case "40P01":  # deadlock_detected
                raise DeadlockError("PostgreSQL chose this wait as the victim of a deadlock") from error
            case _:
                raise error

    def release(self, session: Statements, name: int, *, shared: bool, label: str | None) -> bool:
        if label is None:
            return bool(session.first(UNLOCK_SHARED if shared else UNLOCK, name=name)[0])
        return bool(session.first(UNLOCK_SHARED_SHOWN if shared else UNLOCK_SHOWN, name=name, label=label)[0])


def milliseconds(timeout: float | None) -> str:
    """Round up: 0.4 ms would become 0, and 0 is for ever."""
    return "0" if timeout is None else str(min(max(1, math.ceil(timeout * 1000)), MAX_MILLISECONDS))


def _backend_pid(driver_connection: Any) -> int | None:
    """Return the backend that the driver was promised at start; None when the driver does not tell."""
    if hasattr(driver_connection, "get_server_pid"):
        return int(driver_connection.get_server_pid())
    info = getattr(driver_connection, "info", None)
    pid = getattr(info, "backend_pid", None)
    return None if pid is None else int(pid)
