"""SQL Server: sp_getapplock, a named application lock of a session, valid within its database.

A session that ends, for whatever reason, frees its locks. https://learn.microsoft.com/en-us/sql/
relational-databases/system-stored-procedures/sp-getapplock-transact-sql

The server counts how often a session takes a lock, so each statement looks first whose it is. Every
batch has one SELECT and nothing else that counts rows, since the first result is what all drivers
read: EXEC, IF, SET and DECLARE count none. `SET NOCOUNT ON` guards our own sessions besides; on a
caller's it would outlast the batch and hide the caller's row counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from .. import keys
from ..errors import DeadlockError, LockConnectionError, LockStateError, UnsafeEnvironmentError, UnsupportedError
from .base import SESSION, TRANSACTION, Capabilities, ServerDialect, check_driver, error_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..keys import Key
    from .base import Opener, Scope, ServerSession

__all__ = ["MSSQL"]

OWNERS = {SESSION: "Session", TRANSACTION: "Transaction"}

DRIVERS = ("pymssql", "pyodbc", "aioodbc")

# Longest @LockTimeout, 24 days; longer waits are asked for again.
MAX_MILLISECONDS = 2**31 - 1
WITHOUT_LIMIT = -1

# What our own batches answer beside the procedures' codes.
NOT_ASKED = -1000
NO_TRANSACTION = -1001

ABOUT = text("SELECT CAST(DATABASEPROPERTYEX(DB_NAME(), 'Updateability') AS nvarchar(128))")
SETTINGS = text("""
    SET NOCOUNT ON;
    SET IMPLICIT_TRANSACTIONS OFF;
    SET XACT_ABORT OFF;
    SET LOCK_TIMEOUT -1;
    SELECT 1
""")
# ODBC drivers begin a transaction only when something reads a table.
BEGIN = text("SELECT COUNT(*) FROM sys.schemas")

ACQUIRE = text("""
    DECLARE @name nvarchar(255) = :name, @owner varchar(32) = :owner, @answer int = -1000;
    IF @owner = 'Transaction' AND @@TRANCOUNT = 0
        SET @answer = -1001
    ELSE IF APPLOCK_MODE('public', @name, @owner) = 'NoLock'
        EXEC @answer = sp_getapplock @Resource = @name, @LockMode = :mode, @LockOwner = @owner,
                                     @LockTimeout = :milliseconds;
    SELECT @answer
""")
# A second hold on top of the first, which the server counts.
UPGRADE = text("""
    DECLARE @name nvarchar(255) = :name, @owner varchar(32) = :owner, @answer int = -1000;
    IF APPLOCK_MODE('public', @name, @owner) <> 'NoLock'
        EXEC @answer = sp_getapplock @Resource = @name, @LockMode = 'Exclusive', @LockOwner = @owner,
                                     @LockTimeout = :milliseconds;
    SELECT @answer
""")
RELEASE = text("""
    DECLARE @name nvarchar(255) = :name, @owner varchar(32) = :owner, @answer int = -1000;
    IF APPLOCK_MODE('public', @name, @owner) <> 'NoLock'
        EXEC @answer = sp_releaseapplock @Resource = @name, @LockOwner = @owner;
    SELECT @answer
""")
HOLDS = text("DECLARE @name nvarchar(255) = :name; SELECT APPLOCK_MODE('public', @name, 'Session')")

CANCELLED = "the server ended the question without an answer: it was cancelled"
REFUSED = (
    "sp_getapplock refuses the question (-999), as it does for arguments that it does not know; "
    "is this SQL Server, and may the user call it?"
)
NOT_HELD = 1223
# Killed; the server shuts down or fails over; DB-Library: the connection timed out, broke, or is dead.
LOSSES = frozenset({596, 6005, 6006, 40197, 40613, 20003, 20004, 20006, 20009, 20017, 20047})
# What FreeTDS says of a connection that it has closed.
NO_CONNECTION = "Unknown error (0)"


class MSSQL(ServerDialect):
    """Application locks: exclusive, shared and update."""

    capabilities = Capabilities(
        mechanism="sp_getapplock",
        shared=True,
        server_waits=True,
        fencing=False,
    )
    shared, update, exclusive = "Shared", "Update", "Exclusive"
    modes = ("IntentShared", "Shared", "Update", "IntentExclusive", "Exclusive")
    counts_upgrades = True

    def name(self, prefix: str, key: Key) -> str:
        return keys.mssql_name(prefix, key)

    def lost(self, error: BaseException) -> bool:
        return error_number(error) in LOSSES or NO_CONNECTION in str(error)

    def guard(self, session: ServerSession, *, allow_unsafe: bool, another: Opener | None = None) -> bool:
        if allow_unsafe:
            return True
        check_driver(session, DRIVERS)
        (updateability,) = session.first(ABOUT)
        if updateability == "READ_ONLY":
            raise UnsafeEnvironmentError(
                "this database is read-only, as on a secondary replica: a lock here excludes no session on the "
                "primary. Give the lock provider the primary's URL (ApplicationIntent=ReadWrite)"
            )
        return True

    def prepare(self, session: ServerSession, *, label: str, lease: float | None) -> None:
        # A limit that the application gave pyodbc for its own statements would end our waits.
        driver = getattr(session.driver_connection, "_conn", session.driver_connection)  # aioodbc's is inside
        if getattr(driver, "timeout", 0):
            driver.timeout = 0
        session.first(SETTINGS)

    def acquire(
        self,
        session: ServerSession,
        name: str,
        *,
        mode: str,
        scope: Scope,
        timeout: float | None,
        label: str | None,
        again: bool = False,
    ) -> bool:
        if again:
            self.release(session, name, mode=mode, scope=scope, label=None)
        values = {"name": name, "owner": OWNERS[scope], "mode": mode, "milliseconds": _milliseconds(timeout)}
        code = self._ask(session, ACQUIRE, **values)
        if code == NO_TRANSACTION:
            session.first(BEGIN)
            code = self._ask(session, ACQUIRE, **values)
        match code:
            case -1000 if timeout == 0:  # NOT_ASKED
                return False
            case -1000:
                raise DeadlockError("this session holds the lock already and would wait for itself")
            case -1001:  # NO_TRANSACTION
                raise LockStateError(
                    "there is no transaction that could hold the lock: the connection is in autocommit"
                )
            case _:
                return _granted(code)

    def upgrade(self, session: ServerSession, name: str, *, scope: Scope, timeout: float | None) -> bool | None:
        """Ask for the exclusive mode beside the one held, which stays."""
        code = self._ask(session, UPGRADE, name=name, owner=OWNERS[scope], milliseconds=_milliseconds(timeout))
        return None if code == NOT_ASKED else _granted(code)

    @staticmethod
    def _ask(session: ServerSession, statement: Any, **values: object) -> int:
        answer: Sequence[int] = session.first(statement, **values)
        if not answer:  # what is left of a batch that was cancelled
            raise LockConnectionError(CANCELLED)
        return int(answer[0])

    def release(self, session: ServerSession, name: str, *, mode: str, scope: Scope, label: str | None) -> bool:
        try:
            code = self._ask(session, RELEASE, name=name, owner=OWNERS[scope])
        except DBAPIError as error:
            if error_number(error) == NOT_HELD:
                return False
            raise
        match code:
            case 0:
                return True
            case -1000:  # NOT_ASKED
                return False
            case _:  # -999: held, and not released
                raise LockConnectionError(f"sp_releaseapplock answered {code}, and the lock may be held still")

    def holds(self, session: ServerSession, name: str, *, mode: str) -> bool:
        answer = session.first(HOLDS, name=name)
        if not answer:
            raise LockConnectionError(CANCELLED)
        return bool(answer[0] == mode)


def _granted(code: int) -> bool:
    match code:
        case 0 | 1:  # at once, or after a wait
            return True
        case -1:
            return False
        case -2:
            raise LockConnectionError(CANCELLED)
        case -3:
            raise DeadlockError("SQL Server chose this wait as the victim of a deadlock")
        case -999:
            raise UnsupportedError(REFUSED)
        case _:
            raise LockConnectionError(f"sp_getapplock answered {code}, which is not documented")


def _milliseconds(timeout: float | None) -> int:
    """Round up: a wait is never too short."""
    return WITHOUT_LIMIT if timeout is None else min(math.ceil(timeout * 1000), MAX_MILLISECONDS)
