"""MySQL and MariaDB: who holds and who waits, from whatever the server is set up to show.

MySQL's performance schema shows all, to whoever may read it. MariaDB's is off by default; its plugin
METADATA_LOCK_INFO shows holders, and the process list those who wait. Without either, and without any
right, both servers still tell who holds a lock that one can name.
https://dev.mysql.com/doc/refman/en/performance-schema-metadata-locks-table.html
https://mariadb.com/docs/server/reference/plugins/other-plugins/metadata-lock-info-plugin
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..errors import NotPermittedError
from .base import error_number
from .views import Finding, Look, Sight, room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .views import Run

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
    "Who holds one lock can be asked without it, by its key"
)
SWITCHED_OFF = (
    "the server does not record its locks: UPDATE performance_schema.setup_instruments SET enabled = 'YES' "
    "WHERE name = 'wait/lock/metadata/sql/mdl' (and performance_schema=ON when the server starts). "
    "Who holds one lock can be asked without it, by its key"
)
NO_PLUGIN = (
    "MariaDB shows no table of its locks yet: INSTALL SONAME 'metadata_lock_info' once, or start it with "
    "performance_schema=ON. Who holds one lock can be asked without it, by its key"
)
NO_PROCESS = "other users' names, addresses and waits are hidden: GRANT PROCESS ON *.* TO this database user"


class MySQLView:
    """Shows what the server records, and to whom it may."""

    def look(self, run: Run, name: str | None, known: Callable[[], Sequence[Any]]) -> Look:
        version, recorded, user = run(ABOUT)[0]
        mariadb = "mariadb" in version.lower()
        run(MARIADB_LIMIT if mariadb else MYSQL_LIMIT)
        look = _recorded(run, user) if recorded else Look([], SWITCHED_OFF)
        if look.missing and mariadb:
            look = _from_plugin(run)
        if look.missing:
            names = [name] if name is not None else [*known(), *(sight.name for sight in look.sights)]
            asked = [sight for one in dict.fromkeys(names) for sight in _ask_by_name(run, one)]  # pyright: ignore[reportArgumentType]
            # Asked by its key, the holder is the answer; who else waits is the rest.
            look = Look([*asked, *look.sights], "" if name is not None else look.missing)
        seen = [sight for sight in look.sights if name in (None, sight.name)]
        return Look(seen, look.missing)

    def end(self, run: Run, sight: Sight) -> None:
        holder = run(HOLDER, name=sight.name)[0][0]
        if holder is None or str(holder) != str(sight.session):
            return
        try:
            run(END, session=int(sight.session))
        except DBAPIError as error:
            match error_number(error):
                case 1094:  # ER_NO_SUCH_THREAD: it ended by itself
                    return
                case 1095:  # ER_KILL_DENIED_ERROR
                    raise NotPermittedError(
                        f"this database user may not end a session of {sight.user or 'another user'}: connect as "
                        "that user, or GRANT CONNECTION_ADMIN (MariaDB: CONNECTION ADMIN) ON *.* TO yours"
                    ) from error
            raise

    def findings(self, run: Run) -> list[Finding]:
        version, most, ends = run(CHECK)[0]
        missing = self.look(run, None, list).missing
        return [
            Finding("server", None, version if "mariadb" in version.lower() else f"MySQL {version}"),
            room(int(run(USED)[0][1]), most),
            Finding("looking", None, missing or "all locks are shown"),
            Finding("ending", None, f"sessions of other users: {'yes' if ends else 'only with CONNECTION_ADMIN'}"),
        ]


def _recorded(run: Run, user: str) -> Look:
    try:
        enabled = run(INSTRUMENT)
        if not enabled or enabled[0][0] != "YES":
            return Look([], SWITCHED_OFF)
        rows = run(LOOK)
    except DBAPIError as error:
        if error_number(error) in NO_RIGHT:
            return Look([], NOT_ALLOWED.format(user=user))
        raise
    held = Counter(row[2] for row in rows if row[1])
    return Look([_sight(row, held) for row in rows])


def _sight(row: Sequence[Any], held: Counter[Any]) -> Sight:
    name, granted, session, user, host, seconds, label, since = row
    return Sight(
        name,
        bool(granted),
        session,
        user=user,
        label=_text(label),
        host=host,
        since=None if granted else _ago(seconds),
        session_since=None if since is None else datetime.fromtimestamp(float(_text(since) or 0), UTC),
        key=_readable(name),
        dies_with=held[session] - bool(granted),
    )


def _from_plugin(run: Run) -> Look:
    waiting = list(_waiting(run))
    try:
        rows = run(PLUGIN)
    except DBAPIError as error:
        if error_number(error) == UNKNOWN_TABLE or error_number(error) in NO_RIGHT:
            return Look(waiting, NO_PLUGIN)
        raise
    held = Counter(row[1] for row in rows)
    holding = [
        Sight(
            name,
            granted=True,
            session=session,
            user=user,
            host=_address(host),
            key=_readable(name),
            dies_with=held[session] - 1,
        )
        for name, session, user, host in rows
    ]
    hidden = any(sight.user is None for sight in holding)
    return Look([*holding, *waiting], NO_PROCESS if hidden else "")


def _waiting(run: Run) -> Iterable[Sight]:
    for session, user, host, seconds, statement in run(WAITERS):
        found = WAITED_FOR.search(statement or "")
        if found:
            name = found[1]
            yield Sight(
                name,
                granted=False,
                session=session,
                user=user,
                host=_address(host),
                since=_ago(seconds),
                key=_readable(name),
                dies_with=None,
            )


def _ask_by_name(run: Run, name: str) -> Iterable[Sight]:
    session = run(HOLDER, name=name)[0][0]
    if session is not None:
        user, host = next(iter(run(SESSION, session=session)), (None, None))
        yield Sight(
            name, granted=True, session=session, user=user, host=_address(host), key=_readable(name), dies_with=None
        )


def _readable(name: str) -> str:
    return name.partition("~")[0]


def _address(host: str | None) -> str | None:
    return None if host is None else host.rpartition(":")[0] or host


def _ago(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
