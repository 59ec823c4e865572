"""Oracle: DBMS_LOCK, user locks of a session under numbers of 30 bits, valid in the whole database.

A session that ends, for whatever reason, frees its locks. They are the same on all instances of a
cluster (RAC). https://docs.oracle.com/en/database/oracle/oracle-database/19/arpls/DBMS_LOCK.html

The functions take a BOOLEAN, which SQL did not have before release 23ai, so they are called in
anonymous PL/SQL blocks that give their answer in a bind. Timeouts are whole seconds, rounded up; the
longest, 32767, means without limit, so longer ones are asked for again. The user needs a grant:
GRANT EXECUTE ON SYS.DBMS_LOCK TO the_user.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from .. import keys
from ..errors import DeadlockError, LockConnectionError, UnsafeEnvironmentError, UnsupportedError
from .base import TRANSACTION, Capabilities, ServerDialect, check_driver, error_number

if TYPE_CHECKING:
    from sqlalchemy import TextClause

    from ..keys import Key
    from .base import Opener, Scope, ServerSession

__all__ = ["Oracle"]

MODES = {"NL": 1, "SS": 2, "SX": 3, "S": 4, "SSX": 5, "X": 6}

MAXWAIT = 32767

PING = text("SELECT 1 FROM DUAL")
RIGHTS = text("BEGIN :answer := SYS.DBMS_LOCK.X_MODE; END;")
ABOUT = text("SELECT SYS_CONTEXT('USERENV', 'DATABASE_ROLE') FROM DUAL")
SHOW = text("""
    BEGIN
        SYS.DBMS_APPLICATION_INFO.SET_MODULE('dlock', NULL);
        SYS.DBMS_APPLICATION_INFO.SET_CLIENT_INFO(:label);
        :answer := 0;
    END;
""")
REQUEST = text("""
    BEGIN
        :answer := SYS.DBMS_LOCK.REQUEST(
            id => :lock_id, lockmode => :lock_mode, timeout => :seconds, release_on_commit => (:on_commit = 1));
    END;
""")
REQUEST_SHOWN = text("""
    BEGIN
        SYS.DBMS_APPLICATION_INFO.SET_CLIENT_INFO(:label);
        :answer := SYS.DBMS_LOCK.REQUEST(
            id => :lock_id, lockmode => :lock_mode, timeout => :seconds, release_on_commit => (:on_commit = 1));
    END;
""")
CONVERT = text(
    "BEGIN :answer := SYS.DBMS_LOCK.CONVERT(id => :lock_id, lockmode => :lock_mode, timeout => :seconds); END;"
)
RELEASE = text("BEGIN :answer := SYS.DBMS_LOCK.RELEASE(id => :lock_id); END;")
RELEASE_SHOWN = text("""
    BEGIN
        :answer := SYS.DBMS_LOCK.RELEASE(id => :lock_id);
        SYS.DBMS_APPLICATION_INFO.SET_CLIENT_INFO(:label);
    END;
""")

PLSQL_COMPILATION_ERROR = 6550
# Killed, cut off, timed out, or the instance goes down.
LOSSES = frozenset({28, 1012, 1033, 1034, 1041, 1089, 1090, 1092, 2396, 2399, 3113, 3114, 3135, 12537, 12547, 12571})
CANCELLED = frozenset({1013, 3156})  # by the user, by the driver's call_timeout


class Oracle(ServerDialect):
    """User locks in six modes."""

    capabilities = Capabilities(
        mechanism="DBMS_LOCK",
        shared=True,
        server_waits=True,
        fencing=False,
    )
    ping = PING
    shared, update, exclusive = "SS", "SSX", "X"
    modes = tuple(MODES)

    def name(self, prefix: str, key: Key) -> int:
        return keys.oracle_id(prefix, key)

    def lost(self, error: BaseException) -> bool:
        return error_number(error) in LOSSES

    def guard(self, session: ServerSession, *, allow_unsafe: bool, another: Opener | None = None) -> bool:
        _called(session, RIGHTS)
        if allow_unsafe:
            return True
        check_driver(session, ("oracledb",))
        if "pooled" in str(getattr(session.driver_connection, "dsn", "")).lower():
            raise UnsafeEnvironmentError(
                "this is a pooled server (DRCP), which keeps sessions, and the locks on them, after they are closed. "
                "Give the lock provider a URL without `pooled`"
            )
        (role,) = session.first(ABOUT)
        if role not in (None, "PRIMARY"):
            raise UnsafeEnvironmentError(
                f"this database is a standby ({role}): a lock here excludes no session on the primary. "
                "Give the lock provider the primary's URL"
            )
        return True

    def prepare(self, session: ServerSession, *, label: str, lease: float | None) -> None:
        # A limit that the application gave the driver for its own statements would end our waits.
        if getattr(session.driver_connection, "call_timeout", 0):
            session.driver_connection.call_timeout = 0
        session.answer(SHOW, label=label)

    def acquire(
        self,
        session: ServerSession,
        name: int,
        *,
        mode: str,
        scope: Scope,
        timeout: float | None,
        label: str | None,
        again: bool = False,
    ) -> bool:
        if again:
            self.release(session, name, mode=mode, scope=scope, label=None)
        values = {"lock_id": name, "lock_mode": MODES[mode], "seconds": _seconds(timeout)}
        values["on_commit"] = int(scope == TRANSACTION)
        if label is None:
            code = _called(session, REQUEST, **values)
        else:
            code = _called(session, REQUEST_SHOWN, **values, label=label)
        if code != 4:  # noqa: PLR2004 - documented: this session owns it already
            return _granted(code, "REQUEST")
        if timeout == 0:
            return False
        raise DeadlockError("this session holds the lock already and would wait for itself")

    def upgrade(self, session: ServerSession, name: int, *, scope: Scope, timeout: float | None) -> bool | None:
        """Exchange the mode for the exclusive one."""
        code = _called(session, CONVERT, lock_id=name, lock_mode=MODES[self.exclusive], seconds=_seconds(timeout))
        return None if code == 4 else _granted(code, "CONVERT")  # noqa: PLR2004 - documented: not owned

    def release(self, session: ServerSession, name: int, *, mode: str, scope: Scope, label: str | None) -> bool:
        if label is None:
            code = _called(session, RELEASE, lock_id=name)
        else:
            code = _called(session, RELEASE_SHOWN, lock_id=name, label=label)
        match code:
            case 0:
                return True
            case 4:
                return False
            case _:  # 3, 5: the arguments
                raise LockConnectionError(f"DBMS_LOCK.RELEASE answered {code}, and the lock may be held still")

    def holds(self, session: ServerSession, name: int, *, mode: str) -> bool:
        """Exchange the mode for itself: a user may look at V$LOCK only with a grant."""
        code = _called(session, CONVERT, lock_id=name, lock_mode=MODES[mode], seconds=0)
        return code != 4 and _granted(code, "CONVERT")  # noqa: PLR2004 - documented: not owned


def _called(session: ServerSession, block: TextClause, **values: Any) -> int:
    try:
        return int(session.answer(block, **values))
    except DBAPIError as error:
        if error_number(error) in CANCELLED:
            raise LockConnectionError("the question was cancelled") from error
        if error_number(error) == PLSQL_COMPILATION_ERROR and "DBMS_LOCK" in str(error.orig):
            raise UnsupportedError(
                "this user may not call DBMS_LOCK: let a DBA say GRANT EXECUTE ON SYS.DBMS_LOCK TO the user"
            ) from error
        raise


def _granted(code: int, function: str) -> bool:
    match code:
        case 0:
            return True
        case 1:
            return False
        case 2:
            raise DeadlockError("Oracle chose this wait as the victim of a deadlock")
        case 3 | 5:  # a wrong parameter, an illegal lock handle
            raise UnsupportedError(f"DBMS_LOCK.{function} refuses the question (code {code})")
        case _:
            raise LockConnectionError(f"DBMS_LOCK.{function} answered {code}, which is not documented")


def _seconds(timeout: float | None) -> int:
    """Round up: a wait is never too short. MAXWAIT itself is no limit."""
    return MAXWAIT if timeout is None else min(math.ceil(timeout), MAXWAIT - 1)
