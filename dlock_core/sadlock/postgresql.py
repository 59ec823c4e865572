"""PostgreSQL's advisory locks on the caller's connection: nothing else of it changes.

- A wait that ends in an error would abort the caller's transaction, so it stands behind a savepoint.
- The limit of a wait is a setting of the transaction, and would outlast the statement: the statement
  itself puts the old value back.
- Where no transaction was open, none is afterwards: a session-level lock survives a ROLLBACK, and
  the holder is 'idle', not 'idle in transaction'.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADVISORY-LOCKS
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..dialects.base import sqlstate
from ..dialects.postgresql import PostgreSQL, milliseconds
from ..errors import DeadlockError, UnsafeEnvironmentError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .caller import CallerSession

__all__ = ["PostgreSQLOnCaller"]

# By (shared, xact).
TRY = {
    (False, False): text("SELECT pg_catalog.pg_try_advisory_lock(CAST(:name AS bigint))"),
    (True, False): text("SELECT pg_catalog.pg_try_advisory_lock_shared(CAST(:name AS bigint))"),
    (False, True): text("SELECT pg_catalog.pg_try_advisory_xact_lock(CAST(:name AS bigint))"),
    (True, True): text("SELECT pg_catalog.pg_try_advisory_xact_lock_shared(CAST(:name AS bigint))"),
}
# CASE fixes the order: first the limit, then the wait, and at last the old limit again.
WAIT = {
    (False, False): text("""
        SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                    THEN pg_catalog.pg_advisory_lock(CAST(:name AS bigint)) END,
               pg_catalog.set_config('lock_timeout', s.old, true)
        FROM (SELECT pg_catalog.current_setting('lock_timeout') AS old OFFSET 0) AS s
    """),
    (True, False): text("""
        SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                    THEN pg_catalog.pg_advisory_lock_shared(CAST(:name AS bigint)) END,
               pg_catalog.set_config('lock_timeout', s.old, true)
        FROM (SELECT pg_catalog.current_setting('lock_timeout') AS old OFFSET 0) AS s
    """),
    (False, True): text("""
        SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                    THEN pg_catalog.pg_advisory_xact_lock(CAST(:name AS bigint)) END,
               pg_catalog.set_config('lock_timeout', s.old, true)
        FROM (SELECT pg_catalog.current_setting('lock_timeout') AS old OFFSET 0) AS s
    """),
    (True, True): text("""
        SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                    THEN pg_catalog.pg_advisory_xact_lock_shared(CAST(:name AS bigint)) END,
               pg_catalog.set_config('lock_timeout', s.old, true)
        FROM (SELECT pg_catalog.current_setting('lock_timeout') AS old OFFSET 0) AS s
    """),
}
UNLOCK = {
    False: text("SELECT pg_catalog.pg_advisory_unlock(CAST(:name AS bigint))"),
    True: text("SELECT pg_catalog.pg_advisory_unlock_shared(CAST(:name AS bigint))"),
}
SAVEPOINT = text("SAVEPOINT dlock_wait")
BACK = text("ROLLBACK TO SAVEPOINT dlock_wait")
FORGET = text("RELEASE SAVEPOINT dlock_wait")

IDLE = 0  # libpq's PQTRANS_IDLE
IN_FAILED_SQL_TRANSACTION = "25P02"


class PostgreSQLOnCaller:
    """The verbs."""

    def guard(self, session: CallerSession) -> None:
        """Refuse a pooler that exchanges sessions, and a standby."""
        idle = _idle(session)
        try:
            PostgreSQL().guard(session, unsafe_ok=False)
        except UnsafeEnvironmentError:
            if idle:
                session.rollback()
            raise
        if idle:
            session.rollback()

    def acquire(self, session: CallerSession, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:
        """Ask for the lock; False when it was not free in time.

        Raises:
            DeadlockError: The server chose this wait as a deadlock's victim.
            sqlalchemy.exc.DBAPIError: The caller's transaction is as it was, unless it had failed before.
        """
        if xact or not _idle(session):
            return self._ask_inside(session, name, shared=shared, xact=xact, timeout=timeout)
        try:
            granted = self._ask(session, name, shared=shared, xact=False, timeout=timeout)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            session.rollback()
            session.first(UNLOCK[shared], name=name)  # a grant may have raced with the error
            session.rollback()
            return _refused(error)
        session.rollback()
        return granted

    def _ask_inside(
        self, session: CallerSession, name: Any, *, shared: bool, xact: bool, timeout: float | None
    ) -> bool:
        """Ask inside the caller's transaction."""
        if timeout == 0:
            return self._ask(session, name, shared=shared, xact=xact, timeout=0)
        session.command(SAVEPOINT)
        try:
            granted = self._ask(session, name, shared=shared, xact=xact, timeout=timeout)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            session.command(BACK)
            session.command(FORGET)
            if not xact:
                session.first(UNLOCK[shared], name=name)
            return _refused(error)
        session.command(FORGET)
        return granted

    @staticmethod
    def _ask(session: CallerSession, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:
        if timeout == 0:
            return bool(session.first(TRY[shared, xact], name=name)[0])
        session.first(WAIT[shared, xact], name=name, milliseconds=milliseconds(timeout))
        return True

    def release(self, session: CallerSession, name: Any, *, shared: bool, recover: Callable[[], None]) -> bool:
        """Unlock; False when the server says that this session did not hold it.

        Args:
            session: The session that holds it.
            name: The lock.
            shared: How it is held.
            recover: Rolls back what has failed; then it is possible to unlock.
        """
        idle = _idle(session)
        try:
            answer = session.first(UNLOCK[shared], name=name)
        except DBAPIError as error:
            if sqlstate(error) != IN_FAILED_SQL_TRANSACTION:
                raise
            recover()
            idle = _idle(session)
            answer = session.first(UNLOCK[shared], name=name)
        if idle:
            session.rollback()
        return bool(answer[0])


def _refused(error: DBAPIError) -> bool:
    match sqlstate(error):
        case "55P03":  # lock_not_available
            return False
        case "40P01":  # deadlock_detected
            raise DeadlockError("PostgreSQL chose this wait as the victim of a deadlock") from error
        case _:
            raise error


def _idle(session: CallerSession) -> bool:
    """Tell whether the driver has no transaction open, whatever SQLAlchemy thinks."""
    driver = session.driver_connection
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return not driver.is_in_transaction()
    info = getattr(driver, "info", None)  # psycopg, psycopg2
    status = getattr(info, "transaction_status", None)
    return session.unbegun if status is None else status == IDLE
