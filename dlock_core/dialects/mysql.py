"""MySQL and MariaDB: GET_LOCK, a named lock of a session that is valid on the whole server.

A session that ends, for whatever reason, frees its locks. Waiters are served first come, first
served. Which of the two a server is, it says itself when SQLAlchemy first connects; the URL does not
tell. https://dev.mysql.com/doc/refman/en/locking-functions.html
https://mariadb.com/docs/server/reference/sql-functions/secondary-functions/miscellaneous-functions/get_lock

MySQL rounds the timeout to whole seconds, so a limit on the statement does the timing; MariaDB takes
fractions, but no negative number for "without limit". A session would get its own lock a second time, so
each statement looks first whose it is. An error is no grant: a wait that races with a limit or a kill
either ends in the error or holds the lock, on both servers, as long as GET_LOCK is evaluated last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from .. import keys
from ..errors import DeadlockError, UnsafeEnvironmentError
from .base import Capabilities, ServerDialect, check_driver, error_number
from .failures import StatementCancelledError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..keys import Key
    from .base import Opener, Scope, ServerSession

__all__ = ["MySQL"]

DRIVERS = ("pymysql", "mysqldb", "aiomysql", "asyncmy")

# Longest wait in one statement: the limit is in milliseconds and has 32 bits. Longer ones are asked
# for again, every 49 days.
MAX_SECONDS = 4_294_967

# What makes a lock here protect nothing; variables that a server does not know do not appear. A SELECT, as the locks
# themselves: a proxy that sends these to replicas must send this question there too.
_HAZARDS = """
    SELECT CONNECTION_ID(), hazard.variable_name, hazard.variable_value
    FROM (SELECT 1) AS one LEFT JOIN {}.global_variables AS hazard
    ON hazard.variable_name IN ('group_replication_group_name', 'innodb_read_only', 'read_only', 'wsrep_on')
       AND hazard.variable_value NOT IN ('OFF', '0', '')
    LIMIT 1
"""
MYSQL_HAZARDS = text(_HAZARDS.format("performance_schema"))
MARIADB_HAZARDS = text(_HAZARDS.format("information_schema"))
# The handshake has room for 32 bits of a connection's number.
HANDSHAKE_IDS = 2**32

# Limits that would end a waiter, or an idle holder; on Windows less than a year is allowed. MariaDB's
# limits on idle transactions apply without autocommit only. The variables are for inspection.
MYSQL_SETTINGS = text("""
    SET SESSION wait_timeout = COALESCE(:idle, IF(@@version_compile_os LIKE 'Win%', 2147483, 31536000)),
                max_execution_time = 0, @dlock_session = :label, @dlock_since = UNIX_TIMESTAMP()
""")
MARIADB_SETTINGS = text("""
    SET SESSION wait_timeout = COALESCE(:idle, IF(@@version_compile_os LIKE 'Win%', 2147483, 31536000)),
                max_statement_time = 0, idle_transaction_timeout = 0,
                idle_readonly_transaction_timeout = 0, idle_write_transaction_timeout = 0,
                @dlock_session = :label, @dlock_since = UNIX_TIMESTAMP()
""")

TRY = text("""
    SELECT CASE WHEN IS_USED_LOCK(:name) = CONNECTION_ID() THEN -1 ELSE GET_LOCK(:name, 0) END
""")
# MySQL reads a hint only directly after SELECT: no comment may come between.
WAIT_ON_MYSQL = text("""
    SELECT /*+ MAX_EXECUTION_TIME(:milliseconds) */
    CASE WHEN IS_USED_LOCK(:name) = CONNECTION_ID() THEN -1 ELSE GET_LOCK(:name, :seconds) END
""")
# The session holds the lock, and lets those go first who wait already; no answer of RELEASE_LOCK is 2.
AGAIN_ON_MYSQL = text("""
    SELECT /*+ MAX_EXECUTION_TIME(:milliseconds) */ IF(RELEASE_LOCK(:name) = 2, NULL, GET_LOCK(:name, :seconds))
""")
AGAIN_ON_MARIADB = text("SELECT IF(RELEASE_LOCK(:name) = 2, NULL, GET_LOCK(:name, :seconds))")
WAIT_ON_MARIADB = text("""
    SELECT CASE WHEN IS_USED_LOCK(:name) = CONNECTION_ID() THEN -1 ELSE GET_LOCK(:name, :seconds) END
""")
UNLOCK = text("SELECT RELEASE_LOCK(:name)")
HOLDS = text("SELECT COALESCE(IS_USED_LOCK(:name) = CONNECTION_ID(), 0)")
# Start of the server and a counter for all its sessions, without the number of the server, which would not
# fit in 64 bits with sign. It grows over restarts while the server's clock does not run back.
TOKEN = text("SELECT UUID_SHORT() & 72057594037927935")

# Killed, or the server shuts down: it may say so before it hangs up. Errors of its reads and writes on the network.
LOSSES = frozenset({1053, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2006, 2013, 2055, 4031})

KILLED = "the server ended the question without an answer: it was killed, or the server shuts down or is out of memory"


class MySQL(ServerDialect):
    """GET_LOCK, exclusive only; the same for MariaDB."""

    capabilities = Capabilities(
        mechanism="GET_LOCK",
        shared=False,
        server_waits=True,
        lease=True,
    )

    token = TOKEN

    def name(self, prefix: str, key: Key) -> str:
        return keys.mysql_name(prefix, key)

    def lost(self, error: BaseException) -> bool:
        return error_number(error) in LOSSES

    def guard(self, session: ServerSession, *, allow_unsafe: bool, another: Opener | None = None) -> bool:
        if allow_unsafe:
            return True
        check_driver(session, DRIVERS)
        number, variable, value = session.first(MARIADB_HAZARDS if _is_mariadb(session) else MYSQL_HAZARDS)
        if variable:
            raise UnsafeEnvironmentError(_refusal(variable.lower(), value))
        promised = getattr(session.driver_connection, "thread_id", lambda: None)()
        if promised is not None and promised % HANDSHAKE_IDS != number % HANDSHAKE_IDS:
            raise UnsafeEnvironmentError(
                f"a proxy stands between us and the server (the driver was promised connection {promised}, and "
                f"{number} answers): statements of one session may reach different servers, and each has locks of its "
                "own. Give the lock provider the primary's own URL; if the proxy always leads there, allow_unsafe=True"
            )
        return True

    def prepare(self, session: ServerSession, *, label: str, lease: float | None) -> None:
        settings = MARIADB_SETTINGS if _is_mariadb(session) else MYSQL_SETTINGS
        session.first(settings, label=label, idle=None if lease is None else math.ceil(lease))

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
        try:
            answer = session.first(TRY, name=name) if timeout == 0 else _wait(session, name, timeout, again=again)
        except DBAPIError as error:
            granted = _not_granted(error)
            if again:  # the limit may have ended the statement before it unlocked
                session.first(UNLOCK, name=name)
            return granted
        match answer[0]:
            case 1:
                return True
            case 0:
                return False
            case -1 if timeout == 0:
                return False
            case -1:
                raise DeadlockError("this session holds the lock already and would wait for itself")
            case _:
                raise StatementCancelledError(KILLED)

    def release(self, session: ServerSession, name: str, *, mode: str, scope: Scope, label: str | None) -> bool:
        return bool(session.first(UNLOCK, name=name)[0])  # 0: another's, NULL: free

    def holds(self, session: ServerSession, name: str, *, mode: str) -> bool:
        return bool(session.first(HOLDS, name=name)[0])


def _wait(session: ServerSession, name: str, timeout: float | None, *, again: bool) -> Sequence[int | None]:
    """Let the server wait; both servers round up to milliseconds, so no wait is early or endless."""
    limit = MAX_SECONDS if timeout is None else min(timeout, MAX_SECONDS)
    milliseconds = max(1, math.ceil(limit * 1000))
    if _is_mariadb(session):
        return session.first(AGAIN_ON_MARIADB if again else WAIT_ON_MARIADB, name=name, seconds=milliseconds / 1000)
    # The limit on the statement comes first; the lock's own is there in case the server ignores hints.
    statement = AGAIN_ON_MYSQL if again else WAIT_ON_MYSQL
    return session.first(statement, name=name, milliseconds=milliseconds, seconds=math.ceil(limit) + 1)


def _not_granted(error: DBAPIError) -> bool:
    match error_number(error):
        case 3024:  # ER_QUERY_TIMEOUT: our own limit
            return False
        case 3058 | 1213:  # ER_USER_LOCK_DEADLOCK on MySQL, ER_LOCK_DEADLOCK on MariaDB
            raise DeadlockError("the server chose this wait as the victim of a deadlock") from error
        case 1317:  # ER_QUERY_INTERRUPTED: what MariaDB says by NULL
            raise StatementCancelledError(KILLED) from error
        case _:
            raise error


def _is_mariadb(session: ServerSession) -> bool:
    return bool(getattr(session.sqla, "is_mariadb", False))


def _refusal(variable: str, value: str) -> str:
    match variable:
        case "wsrep_on":
            return (
                "this server is a node of a Galera cluster (wsrep_on=ON), and each node has locks of its own. Give "
                "the lock provider a URL that always leads to one and the same node, and allow_unsafe=True"
            )
        case "group_replication_group_name":
            return (
                "this server belongs to a replication group, and each member has locks of its own. Give the lock "
                "provider a URL that always leads to the primary, and allow_unsafe=True"
            )
        case _:
            return (
                f"this server is read-only ({variable}={value}), as replicas are: a lock here excludes no session on "
                "the primary. Give the lock provider the primary's URL"
            )
