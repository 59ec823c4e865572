"""SQL Server: sp_getapplock, a named application lock of a session, valid within its database.

A session that ends, for whatever reason, frees its locks. https://learn.microsoft.com/en-us/sql/
relational-databases/system-stored-procedures/sp-getapplock-transact-sql

The server counts how often a session takes a lock, so each statement looks first whose it is. Every
batch has one SELECT and nothing else that counts rows, since the first result is what all drivers
read: EXEC, IF, SET and DECLARE count none. `SET NOCOUNT ON` guards our own sessions besides; on a
caller's it would outlast the batch and hide his row counts.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from .. import keys
from ..errors import DeadlockError, LockConnectionError, LockStateError, UnsafeEnvironmentError, UnsupportedError
from .base import PING, Capabilities, error_number
from .mssql_view import MSSQLView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..keys import Key
    from .base import EndableStatements, Statements

__all__ = ["EXCLUSIVE", "MODES", "MSSQL", "SHARED", "UPDATE", "Owner"]

Owner = Literal["Session", "Transaction"]
SHARED, UPDATE, EXCLUSIVE = "Shared", "Update", "Exclusive"
MODES = ("IntentShared", SHARED, UPDATE, "IntentExclusive", EXCLUSIVE)

# Longest @LockTimeout, 24 days; longer waits are asked for again.
MAX_MILLISECONDS = 2**31 - 1
FOR_EVER = -1

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

CANCELLED = "the server ended the question without an answer: somebody cancelled it"
REFUSED = (
    "sp_getapplock refuses the question (-999), as it does for arguments that it does not know; "
    "is this SQL Server, and may the user call it?"
)
NOT_HELD = 1223
# Killed; the server shuts down or fails over; DB-Library: the connection timed out, broke, or is dead.
LOSSES = frozenset({596, 6005, 6006, 40197, 40613, 20003, 20004, 20006, 20009, 20017, 20047})
# What FreeTDS says of a connection that it has closed.
NO_CONNECTION = "Unknown error (0)"


class MSSQL:
    """Application locks: exclusive, shared and update."""

    capabilities = Capabilities(
        mechanism="sp_getapplock",
        shared=True,
        server_waits=True,
        fencing=False,
    )
    ping = PING
    token = None
    view = MSSQLView()

    def name(self, prefix: str, key: Key) -> str:
        return keys.mssql_name(prefix, key)

    def lost(self, error: BaseException) -> bool:
        return error_number(error) in LOSSES or NO_CONNECTION in str(error)

    def guard(
        self,
        session: Statements,
        *,
        unsafe_ok: bool,
        another: Callable[[], EndableStatements] | None = None,  # noqa: ARG002 - one session tells all
    ) -> bool:
        if unsafe_ok:
            return True
        if os.name == "nt" and getattr(session.sqla.loaded_dbapi, "pooling", False):
            raise UnsafeEnvironmentError(
                "Windows keeps pyodbc's connections, and the locks on them, for a while after they are closed: "
                "set `pyodbc.pooling = False` before the process connects for the first time"
            )
        (updateability,) = session.first(ABOUT)
        if updateability == "READ_ONLY":
            raise UnsafeEnvironmentError(
                "this database is read-only, as on a secondary replica: a lock here excludes nobody on the "
                "primary. Give the lock provider the primary's URL (ApplicationIntent=ReadWrite)"
            )
        return True

    def prepare(self, session: Statements, *, label: str, lease: float | None) -> None:  # noqa: ARG002 - the lock's name shows the key; there is no lease
        # A limit that the application gave pyodbc for its own statements would end our waits.
        driver = getattr(session.driver_connection, "_conn", session.driver_connection)  # aioodbc's is inside
        if getattr(driver, "timeout", 0):
            driver.timeout = 0
        session.first(SETTINGS)

    def acquire(
        self,
        session: Statements,
        name: str,
        *,
        shared: bool,
        timeout: float | None,
        label: str | None,  # noqa: ARG002 - the lock's name shows the key
    ) -> bool:
        return self.request(session, name, SHARED if shared else EXCLUSIVE, timeout)

    def request(
        self, session: Statements, name: str, mode: str, timeout: float | None, *, owner: Owner = "Session"
    ) -> bool:
        """Ask for the lock in a mode, for the session or for its transaction.

        Raises:
            DeadlockError: The session holds it already, or was chosen as a deadlock's victim.
            LockStateError: It is for a transaction, and there is none.
        """
        code = self._ask(session, ACQUIRE, name=name, owner=owner, mode=mode, milliseconds=_milliseconds(timeout))
        if code == NO_TRANSACTION:
            session.first(BEGIN)
            code = self._ask(session, ACQUIRE, name=name, owner=owner, mode=mode, milliseconds=_milliseconds(timeout))
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

    def upgrade(
        self, session: Statements, name: str, timeout: float | None, *, owner: Owner = "Session"
    ) -> bool | None:
        """Ask for the exclusive mode beside the one held, which stays; None when the session holds none."""
        code = self._ask(session, UPGRADE, name=name, owner=owner, milliseconds=_milliseconds(timeout))
        return None if code == NOT_ASKED else _granted(code)

    @staticmethod
    def _ask(session: Statements, statement: Any, **values: object) -> int:
        answer: Sequence[int] = session.first(statement, **values)
        if not answer:  # what is left of a batch that was cancelled
            raise LockConnectionError(CANCELLED)
        return int(answer[0])

    def release(self, session: Statements, name: str, *, shared: bool, label: str | None) -> bool:  # noqa: ARG002
        return self.free(session, name)

    def free(self, session: Statements, name: str, *, owner: Owner = "Session") -> bool:
        """Undo one grant; False when the server says that the session held none."""
        try:
            code = self._ask(session, RELEASE, name=name, owner=owner)
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
    return FOR_EVER if timeout is None else min(math.ceil(timeout * 1000), MAX_MILLISECONDS)
