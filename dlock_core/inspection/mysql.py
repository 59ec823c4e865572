"""MySQL and MariaDB: holders and waiters, from whatever the server is set up to show.

MySQL's performance schema shows all, to a user that may read it. MariaDB's is off by default; its plugin
METADATA_LOCK_INFO shows holders, and the process list what waits. Without either, and without any
right, both servers still show the holder of a lock that one can name.
https://dev.mysql.com/doc/refman/en/performance-schema-metadata-locks-table.html
https://mariadb.com/docs/server/reference/plugins/other-plugins/metadata-lock-info-plugin
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..dialects.base import error_number
from .base import Finding, LockRow, Snapshot, View, ago, ending, room, with_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .base import Run

__all__ = ["MySQLView"]

ABOUT = text("SELECT VERSION(), @@performance_schema, CURRENT_USER()")
MYSQL_LIMIT = text("SET SESSION max_execution_time = 5000")
MARIADB_LIMIT = text("SET SESSION max_statement_time = 5")
INSTRUMENT = text("""
    SELECT enabled FROM performance_schema.setup_instruments WHERE name = 'wait/lock/metadata/sql/mdl'
""")
# Our sessions tell about themselves in two variables of their own.
LOOK = text("""
    SELECT l.object_name, l.lock_status = 'GRANTED', t.processlist_id, t.processlist_user, t.processlist_host,
           t.processlist_time, label.variable_value, since.variable_value
    FROM performance_schema.metadata_locks AS l
    JOIN performance_schema.threads AS t ON t.thread_id = l.owner_thread_id
    LEFT JOIN performance_schema.user_variables_by_thread AS label
           ON label.thread_id = l.owner_thread_id AND label.variable_name = 'dlock_session'
    LEFT JOIN performance_schema.user_variables_by_thread AS since
           ON since.thread_id = l.owner_thread_id AND since.variable_name = 'dlock_since'
    WHERE l.object_type = 'USER LEVEL LOCK' AND l.lock_status IN ('GRANTED', 'PENDING')
    ORDER BY l.object_name, t.processlist_time DESC
""")
PLUGIN = text("""
    SELECT m.table_schema, m.thread_id, p.user, p.host
    FROM information_schema.metadata_lock_info AS m LEFT JOIN information_schema.processlist AS p ON p.id = m.thread_id
    WHERE m.lock_type = 'User lock'
""")
WAITERS = text("""
    SELECT id, user, host, time, info FROM information_schema.processlist
    WHERE LOWER(state) = 'user lock' ORDER BY time DESC
""")
HOLDER = text("SELECT IS_USED_LOCK(:name)")
SESSION = text("SELECT user, host FROM information_schema.processlist WHERE id = :session")
CHECK = text("""
    SELECT VERSION(), @@max_connections,
           (SELECT count(*) FROM information_schema.user_privileges
            WHERE privilege_type IN ('SUPER', 'CONNECTION_ADMIN', 'CONNECTION ADMIN'))
""")
USED = text("SHOW GLOBAL STATUS LIKE 'Threads_connected'")
END = text("KILL CONNECTION :session")

WAITED_FOR = re.compile(r"GET_LOCK\(\s*'((?:[^'\\]|\\.|'')*)'", re.IGNORECASE)
NO_RIGHT = frozenset({1044, 1142, 1143, 1227, 1370})
UNKNOWN_TABLE = 1109

NOT_ALLOWED = (
    "{user} may not read the server's table of locks: GRANT SELECT ON performance_schema.* TO that user. "
    "The holder of one lock can be asked for without it, by its key"
)
SWITCHED_OFF = (
    "the server does not record its locks: UPDATE performance_schema.setup_instruments SET enabled = 'YES' "
    "WHERE name = 'wait/lock/metadata/sql/mdl' (and performance_schema=ON when the server starts). "
    "The holder of one lock can be asked for without it, by its key"
)
NO_PLUGIN = (
    "MariaDB shows no table of its locks yet: INSTALL SONAME 'metadata_lock_info' once, or start it with "
    "performance_schema=ON. The holder of one lock can be asked for without it, by its key"
)
NO_PROCESS = "other users' names, addresses and waits are hidden: GRANT PROCESS ON *.* TO this database user"


class MySQLView(View):
    """Shows what the server records and lets this user see."""

    may_not_end = (1095,)  # ER_KILL_DENIED_ERROR
    right_to_end = (
        "this database user may not end a session of {}: connect as that user, or GRANT CONNECTION_ADMIN "
        "(MariaDB: CONNECTION ADMIN) ON *.* TO yours"
    )
    gone = (1094,)  # ER_NO_SUCH_THREAD

    def look(self, run: Run, name: str | None, known: Callable[[], Sequence[Any]]) -> Snapshot:
        version, recorded, user = run(ABOUT)[0]
        mariadb = "mariadb" in version.lower()
        run(MARIADB_LIMIT if mariadb else MYSQL_LIMIT)
        look = _recorded(run, user) if recorded else Snapshot([], SWITCHED_OFF)
        if look.missing and mariadb:
            look = _from_plugin(run)
        if look.missing:
            names = [name] if name is not None else [*known(), *(row.name for row in look.rows)]
            asked = [row for one in dict.fromkeys(names) for row in _ask_by_name(run, one)]  # pyright: ignore[reportArgumentType]
            # Asked by its key, the holder is the answer; waiters are the rest.
            look = Snapshot([*asked, *look.rows], "" if name is not None else look.missing)
        seen = [row for row in look.rows if name in (None, row.name)]
        return Snapshot(seen, look.missing)

    def kill(self, run: Run, row: LockRow) -> None:
        holder = run(HOLDER, name=row.name)[0][0]
        if holder is not None and str(holder) == str(row.session):
            run(END, session=int(row.session))

    def findings(self, run: Run) -> list[Finding]:
        version, most, ends = run(CHECK)[0]
        missing = self.look(run, None, list).missing
        return [
            Finding("server", None, version if "mariadb" in version.lower() else f"MySQL {version}"),
            room(int(run(USED)[0][1]), most),
            Finding("looking", None, missing or "all locks are shown"),
            ending(ends, "CONNECTION_ADMIN"),
        ]


def _recorded(run: Run, user: str) -> Snapshot:
    try:
        enabled = run(INSTRUMENT)
        if not enabled or enabled[0][0] != "YES":
            return Snapshot([], SWITCHED_OFF)
        rows = run(LOOK)
    except DBAPIError as error:
        if error_number(error) in NO_RIGHT:
            return Snapshot([], NOT_ALLOWED.format(user=user))
        raise
    return Snapshot(with_counts(map(_recorded_row, rows)))


def _recorded_row(seen: Sequence[Any]) -> LockRow:
    name, granted, session, user, host, seconds, label, since = seen
    return LockRow(
        name,
        bool(granted),
        session,
        user=user,
        label=_text(label),
        host=host,
        since=None if granted else ago(seconds),
        session_since=None if since is None else datetime.fromtimestamp(float(_text(since) or 0), UTC),
        key=_readable(name),
    )


def _from_plugin(run: Run) -> Snapshot:
    waiting = list(_waiting(run))
    try:
        rows = run(PLUGIN)
    except DBAPIError as error:
        if error_number(error) == UNKNOWN_TABLE or error_number(error) in NO_RIGHT:
            return Snapshot(waiting, NO_PLUGIN)
        raise
    holding = with_counts(_row(name, session, user, host) for name, session, user, host in rows)
    hidden = any(row.user is None for row in holding)
    return Snapshot([*holding, *waiting], NO_PROCESS if hidden else "")


def _waiting(run: Run) -> Iterable[LockRow]:
    for session, user, host, seconds, statement in run(WAITERS):
        found = WAITED_FOR.search(statement or "")
        if found:
            yield _row(found[1], session, user, host)._replace(granted=False, since=ago(seconds))


def _ask_by_name(run: Run, name: str) -> Iterable[LockRow]:
    session = run(HOLDER, name=name)[0][0]
    if session is not None:
        user, host = next(iter(run(SESSION, session=session)), (None, None))
        yield _row(name, session, user, host)


def _row(name: str, session: int, user: str | None, address: str | None) -> LockRow:
    """Return what is known without the table of locks: not which others the session holds."""
    host = address and (address.rpartition(":")[0] or address)
    return LockRow(name, granted=True, session=session, user=user, host=host, key=_readable(name), other_locks=None)


def _readable(name: str) -> str:
    return name.partition("~")[0]


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
