"""PostgreSQL: session-level advisory locks on one signed 64-bit number per database.

A session that ends, for whatever reason, frees its locks. Waiters are served first come, first
served. https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS

`pg_advisory_lock` that ends in an error (55P03 lock_timeout, 57014 cancelled) may all the same have
been granted: the server's clean-up keeps a grant that raced with the error, and the session then
holds it. So after any error of a wait we unlock once; a server that answers "not yours" only warns.
"""

from __future__ import annotations

import math
import secrets
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from .. import keys
from ..errors import DeadlockError, LockConnectionError, UnsafeEnvironmentError, UnsupportedError
from .base import SESSION, TRANSACTION, Capabilities, Scope, ServerDialect, check_driver, sqlstate

if TYPE_CHECKING:
    from sqlalchemy import TextClause

    from ..keys import Key
    from .base import Opener, ServerSession

__all__ = ["PostgreSQL", "check_locks", "check_pooler", "xact_statement"]

DRIVERS = ("psycopg", "psycopg2", "asyncpg")

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

# By mode and scope: what the functions of PostgreSQL end with.
FUNCTIONS: dict[tuple[str, Scope], str] = {
    ("exclusive", SESSION): "lock",
    ("shared", SESSION): "lock_shared",
    ("exclusive", TRANSACTION): "xact_lock",
    ("shared", TRANSACTION): "xact_lock_shared",
}


def _for_each(statement: str) -> dict[tuple[str, Scope], TextClause]:
    return {how: text(statement.format(function)) for how, function in FUNCTIONS.items()}


TRY = _for_each("SELECT pg_catalog.pg_try_advisory_{}(CAST(:name AS bigint))")
TRY_SHOWN = _for_each("""
    SELECT CASE WHEN pg_catalog.pg_try_advisory_{}(CAST(:name AS bigint))
    THEN pg_catalog.set_config('application_name', :label, false) IS NOT NULL ELSE false END
""")
# CASE fixes the order: the limit is set, for this statement only, before the wait begins.
WAIT = _for_each("""
    SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                 AND pg_catalog.set_config('application_name', :label, false) IS NOT NULL
    THEN pg_catalog.pg_advisory_{}(CAST(:name AS bigint)) END
""")
# The session holds the lock, and lets those go first who wait already.
WAIT_AGAIN = {
    mode: text(f"""
        SELECT CASE WHEN pg_catalog.pg_advisory_un{function}(CAST(:name AS bigint)) IS NOT NULL
                     AND pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                     AND pg_catalog.set_config('application_name', :label, false) IS NOT NULL
        THEN pg_catalog.pg_advisory_{function}(CAST(:name AS bigint)) END
    """)
    for (mode, scope), function in FUNCTIONS.items()
    if scope == SESSION
}
# In a caller's transaction the limit would outlast the statement: at last it puts the old one back.
WAIT_ON_CALLERS = _for_each("""
    SELECT CASE WHEN pg_catalog.set_config('lock_timeout', :milliseconds, true) IS NOT NULL
                THEN pg_catalog.pg_advisory_{}(CAST(:name AS bigint)) END,
           pg_catalog.set_config('lock_timeout', s.old, true)
    FROM (SELECT pg_catalog.current_setting('lock_timeout') AS old OFFSET 0) AS s
""")
UNLOCK = {
    "exclusive": text("SELECT pg_catalog.pg_advisory_unlock(CAST(:name AS bigint))"),
    "shared": text("SELECT pg_catalog.pg_advisory_unlock_shared(CAST(:name AS bigint))"),
}
UNLOCK_SHOWN = {
    "exclusive": text("""
        SELECT pg_catalog.pg_advisory_unlock(CAST(:name AS bigint)),
               pg_catalog.set_config('application_name', :label, false)
    """),
    "shared": text("""
        SELECT pg_catalog.pg_advisory_unlock_shared(CAST(:name AS bigint)),
               pg_catalog.set_config('application_name', :label, false)
    """),
}
SAVEPOINT = text("SAVEPOINT dlock_wait")
ROLLBACK_TO = text("ROLLBACK TO SAVEPOINT dlock_wait")
FORGET = text("RELEASE SAVEPOINT dlock_wait")
HOLDS = text("""
    SELECT count(*) FROM pg_catalog.pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = :mode
      AND l.pid = pg_catalog.pg_backend_pid()
      AND (CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint) = CAST(:name AS bigint)
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d
                        WHERE d.datname = pg_catalog.current_database())
""")
# In autocommit and after the grant, a transaction id is younger than every earlier holder's.
TOKEN = text("SELECT CAST(CAST(pg_catalog.pg_current_xact_id() AS text) AS bigint)")

# The table is asked for in a way that is no error in the server's log where it is missing.
ASK_FOR_TABLE = text("""
    SELECT coalesce(bool_and(pg_catalog.has_table_privilege(pg_catalog.to_regclass('dlock_names'), r)), false)
    FROM (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS needed (r)
""")
SHOW_KEY = text("""
    SELECT coalesce(bool_and(pg_catalog.has_table_privilege(pg_catalog.to_regclass('dlock_names'), r)), false),
           pg_catalog.set_config('application_name', :label, false)
    FROM (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')) AS needed (r)
""")
LIMIT_WAIT = text("SELECT pg_catalog.set_config('lock_timeout', :milliseconds, false)")
# In one order, so that two writers of the same names do not wait for each other.
WRITE_NAMES = text("""
    WITH written AS (
        INSERT INTO dlock_names (actual_key, key, seen)
        SELECT CAST(e.name ->> 0 AS bigint), e.name ->> 1, pg_catalog.now()
        FROM pg_catalog.jsonb_array_elements(CAST(CAST(:names AS text) AS jsonb)) AS e (name)
        ORDER BY 1
        ON CONFLICT (actual_key) DO UPDATE SET key = EXCLUDED.key, seen = EXCLUDED.seen
        RETURNING 1
    )
    SELECT count(*) FROM written
""")
DROP_OLD_NAMES = text("""
    WITH dropped AS (
        DELETE FROM dlock_names WHERE actual_key IN (
            SELECT actual_key FROM dlock_names WHERE seen < pg_catalog.now() - CAST('1 day' AS interval)
            FOR UPDATE SKIP LOCKED
        ) RETURNING 1
    )
    SELECT count(*) FROM dropped
""")

# The server shuts down, or ends an idle session; it may say so before it hangs up, which is all that drivers look at.
LOSSES = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})
CONNECTION_EXCEPTIONS = "08"
INVALID_PARAMETER_VALUE = "22023"
UNDEFINED_OBJECT = "42704"


class PostgreSQL(ServerDialect):
    """Advisory locks, exclusive and shared."""

    capabilities = Capabilities(
        mechanism="session-level advisory lock",
        shared=True,
        server_waits=True,
        lease=True,
    )
    token = TOKEN

    def name(self, prefix: str, key: Key) -> int:
        return keys.int64(prefix, key)

    def __init__(self) -> None:
        self._probed = False

    def lost(self, error: BaseException) -> bool:
        state = sqlstate(error) or ""
        return state in LOSSES or state.startswith(CONNECTION_EXCEPTIONS)

    def guard(self, session: ServerSession, *, allow_unsafe: bool, another: Opener | None = None) -> bool:
        idle = session.borrowed and not session.begun()
        try:
            ours_alone = self._check(session, allow_unsafe=allow_unsafe, another=another)
        except UnsafeEnvironmentError:
            if idle:
                session.rollback()
            raise
        if idle:
            session.rollback()
        return ours_alone

    def _check(self, session: ServerSession, *, allow_unsafe: bool, another: Opener | None) -> bool:
        pid, standby, version = session.first(ABOUT)
        ours = _backend_pid(session.driver_connection)
        direct = ours is None or ours == pid
        session.number = session.number and pid
        if allow_unsafe:
            return direct
        check_driver(session, DRIVERS)
        if standby:
            raise UnsafeEnvironmentError(
                "this PostgreSQL server is a standby: a lock here excludes no session on the primary. "
                "Give the lock provider the primary's URL (target_session_attrs=read-write)"
            )
        if "cockroach" in version.lower():
            raise UnsafeEnvironmentError(
                "this server is CockroachDB, whose advisory locks do nothing: use a PostgreSQL server for locks"
            )
        if not self._probed:
            self._probe(session, direct, another)
        return True

    def _probe(self, session: ServerSession, direct: bool, another: Opener | None) -> None:
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

    def prepare(self, session: ServerSession, *, label: str, lease: float | None) -> None:
        if lease is not None and (session.sqla.server_version_info or ()) < (14,):
            raise UnsupportedError("lease: PostgreSQL ends idle sessions (idle_session_timeout) from version 14 on")
        _lift_limit(session.driver_connection)
        session.first(SETTINGS, label=label, idle=milliseconds(lease))
        try:
            session.first(CHECK_CLIENT)
        except DBAPIError as error:
            # Before version 14, and on servers whose platform cannot tell that a client has gone.
            if sqlstate(error) not in (UNDEFINED_OBJECT, INVALID_PARAMETER_VALUE):
                raise

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
        if session.borrowed:
            return self._acquire_on_callers(session, name, (mode, scope), timeout)
        if timeout == 0:
            if label is None:
                return bool(session.first(TRY[mode, scope], name=name)[0])
            return bool(session.first(TRY_SHOWN[mode, scope], name=name, label=label)[0])
        statement = WAIT_AGAIN[mode] if again else WAIT[mode, scope]
        try:
            session.first(statement, name=name, milliseconds=milliseconds(timeout), label=label or session.label)
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            self.release(session, name, mode=mode, scope=scope, label=session.label)
            return _refused(error)
        return True

    def _acquire_on_callers(
        self, session: ServerSession, name: int, how: tuple[str, Scope], timeout: float | None
    ) -> bool:
        """Ask on a caller's connection, whose transaction is afterwards as it was, unless it had failed before.

        A wait that ends in an error would abort it, so a wait stands behind a savepoint. Where no transaction was open,
        none is afterwards: a session's lock survives a ROLLBACK, and its holder is 'idle', not 'idle in transaction'.
        """
        mode, scope = how
        outside = scope == SESSION and not session.begun()
        behind_savepoint = timeout != 0 and not outside
        if behind_savepoint:
            session.command(SAVEPOINT)
        try:
            if timeout == 0:
                granted = bool(session.first(TRY[how], name=name)[0])
            else:
                session.first(WAIT_ON_CALLERS[how], name=name, milliseconds=milliseconds(timeout))
                granted = True
        except DBAPIError as error:
            if error.connection_invalidated or not (outside or behind_savepoint):
                raise
            if behind_savepoint:
                session.command(ROLLBACK_TO)
                session.command(FORGET)
            else:
                session.rollback()
            if scope == SESSION:
                session.first(UNLOCK[mode], name=name)
            if outside:
                session.rollback()
            return _refused(error)
        if behind_savepoint:
            session.command(FORGET)
        elif outside:
            session.rollback()
        return granted

    def release(self, session: ServerSession, name: int, *, mode: str, scope: Scope, label: str | None) -> bool:
        idle = session.borrowed and not session.begun()
        if label is None:
            answer = session.first(UNLOCK[mode], name=name)
        else:
            answer = session.first(UNLOCK_SHOWN[mode], name=name, label=label)
        if idle:
            session.rollback()
        return bool(answer[0])

    def holds(self, session: ServerSession, name: int, *, mode: str) -> bool:
        return bool(session.first(HOLDS, name=name, mode="ShareLock" if mode == self.shared else "ExclusiveLock")[0])


def _refused(error: DBAPIError) -> bool:
    match sqlstate(error):
        case "55P03":  # lock_not_available
            return False
        case "40P01":  # deadlock_detected
            raise DeadlockError("PostgreSQL chose this wait as the victim of a deadlock") from error
        case _:
            raise error


def xact_statement(name: int | str, *, shared: bool, timeout: float | None) -> tuple[str, dict[str, int | str]]:
    """Return what takes a lock for the current transaction, with its values, for a cursor that reads `%(name)s`.

    A try answers whether the lock was free. A wait ends in an error when it was not, so it belongs behind a savepoint.
    """
    how = "shared" if shared else "exclusive", TRANSACTION
    if timeout == 0:
        return TRY[how].text.replace(":name", "%(name)s"), {"name": name}
    wait = WAIT_ON_CALLERS[how].text.replace(":name", "%(name)s").replace(":milliseconds", "%(milliseconds)s")
    return wait, {"name": name, "milliseconds": milliseconds(timeout)}


def milliseconds(timeout: float | None) -> str:
    """Round up: 0.4 ms would become 0, which is no limit."""
    return "0" if timeout is None else str(min(max(1, math.ceil(timeout * 1000)), MAX_MILLISECONDS))


def _lift_limit(driver_connection: Any) -> None:
    """Set aside the limit that the application gave asyncpg for its own statements: it would end our waits."""
    config: Any = getattr(driver_connection, "_config", None)
    if getattr(config, "command_timeout", None) is not None:
        driver_connection._config = config._replace(command_timeout=None)  # noqa: SLF001 - there is no other way to it


def _backend_pid(driver_connection: Any) -> int | None:
    """Return the backend that the driver was promised at start; None when the driver does not tell."""
    if hasattr(driver_connection, "get_server_pid"):
        return int(driver_connection.get_server_pid())
    info = getattr(driver_connection, "info", None)
    pid = getattr(info, "backend_pid", None)
    return None if pid is None else int(pid)


# Which client asks, in turn. An idle pooler in transaction mode answers both clients from one backend, or
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
# two numbers it is in a space of its own, where it meets no user's key.
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


def check_pooler(session: ServerSession, another: Opener) -> None:
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


def _backend_of_its_own(session: ServerSession, second: ServerSession) -> int:
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


def check_locks(session: ServerSession) -> None:
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


def _look_alike(session: ServerSession) -> str:
    version = session.first(VERSION)[0]
    return f"this server ({version}) has no working advisory locks: use a PostgreSQL server for locks"


VERSION: TextClause = text("SELECT version()")
