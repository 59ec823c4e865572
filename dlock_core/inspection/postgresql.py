"""PostgreSQL: holders and waiters, from pg_locks and pg_stat_activity.

Every role sees all locks of its database, and of other roles' sessions the name of the role and of the
application; pg_monitor or pg_read_all_stats shows their address and age too. When a lock was granted
is not recorded. https://www.postgresql.org/docs/current/view-pg-locks.html
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..dialects.base import sqlstate
from ..errors import NotPermittedError
from ..keys import load_key
from .base import Finding, LockRow, Snapshot, View, ending, room

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from ..keys import Key
    from .base import Run

__all__ = ["PostgreSQLView"]

LIMIT = text("SELECT pg_catalog.set_config('statement_timeout', '5000', false)")
# Our keys are those of one bigint: two halves, objsubid 1. `waitstart` came with version 14.
LOOK = text("""
    SELECT * FROM (
        SELECT (CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint) AS name,
               l.granted, l.pid, l.mode = 'ShareLock', s.usename, s.application_name,
               coalesce(s.client_hostname, host(s.client_addr)),
               CAST(to_jsonb(l) ->> 'waitstart' AS timestamptz), s.backend_start,
               count(*) FILTER (WHERE l.granted) OVER (PARTITION BY l.pid)
        FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS s USING (pid)
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.pid IS NOT NULL
          AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d
                            WHERE d.datname = pg_catalog.current_database())
    ) AS seen
    WHERE CAST(:name AS bigint) IS NULL OR seen.name = CAST(:name AS bigint)
    ORDER BY name, 8
""")
# Looks once more, since a session that ended may have left its number to another, and since one that is at work
# may have taken other locks: the count and the end are one statement.
END = text("""
    WITH held AS (
        SELECT l.pid, (CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint) AS name
        FROM pg_catalog.pg_locks AS l
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid = :session
    )
    SELECT CASE WHEN CAST(:alone AS boolean) AND (SELECT count(*) FROM held) > 1 THEN false
                ELSE pg_catalog.pg_terminate_backend(held.pid) IS NOT NULL END
    FROM held WHERE held.name = CAST(:name AS bigint)
    LIMIT 1
""")
CHECK = text("""
    SELECT pg_catalog.current_setting('server_version'),
           (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname IS NOT NULL),
           CAST(pg_catalog.current_setting('max_connections') AS integer),
           CAST(pg_catalog.current_setting('max_locks_per_transaction') AS integer)
           * (CAST(pg_catalog.current_setting('max_connections') AS integer)
              + CAST(pg_catalog.current_setting('max_prepared_transactions') AS integer)),
           pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'),
           pg_catalog.pg_has_role('pg_signal_backend', 'USAGE')
""")
# To ask for a table that is missing is an error in PostgreSQL's log, as is one that we may not read.
MAY_READ_NAMES = text("""
    SELECT pg_catalog.has_table_privilege(pg_catalog.to_regclass('dlock_names'), 'SELECT')
""")
# One parameter, however many there are.
NAMES = text("SELECT actual_key, key FROM dlock_names WHERE actual_key = ANY(CAST(CAST(:names AS text) AS bigint[]))")
INSUFFICIENT_PRIVILEGE = "42501"


class PostgreSQLView(View):
    """Shows all, to every role."""

    def look(self, run: Run, name: int | None, known: Callable[[], Sequence[Any]]) -> Snapshot:
        run(LIMIT)
        return Snapshot([_row(seen) for seen in run(LOOK, name=name)])

    def end(self, run: Run, row: LockRow, *, alone: bool) -> bool:
        try:
            found = run(END, session=row.session, name=row.name, alone=alone)
        except DBAPIError as error:
            if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
                raise
            raise NotPermittedError(
                f"this database user may not end a session of {row.user or 'that user'}: "
                f"connect as {row.user or 'that user'}, or GRANT pg_signal_backend TO your user "
                "(a superuser's session needs a superuser)"
            ) from error
        return not found or bool(found[0][0])

    def findings(self, run: Run) -> list[Finding]:
        version, used, most, locks, sees, ends = run(CHECK)[0]
        stats = "age and address of all users' sessions are shown"
        return [
            Finding("server", None, f"PostgreSQL {version}"),
            room(used, most),
            Finding("locks", None, f"room for at least {locks} at a time, of all kinds (max_locks_per_transaction)"),
            Finding("looking", None, stats if sees else f"GRANT pg_read_all_stats, and {stats}"),
            ending(ends, "GRANT pg_signal_backend"),
        ]


def known_names(run: Run, names: Collection[int]) -> dict[int | str, tuple[str, Key]]:
    """Return what the table `dlock_names` knows of these locks; nothing where there is none, or no right to it."""
    if not names or not run(MAY_READ_NAMES)[0][0]:
        return {}
    found: dict[int | str, tuple[str, Key]] = {}
    try:
        for name, key in run(NAMES, names=f"{{{','.join(map(str, names))}}}"):
            with suppress(ValueError, TypeError):  # not written by us
                found[name] = load_key(key)
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        return {}
    return found


def _row(seen: Sequence[Any]) -> LockRow:
    name, granted, session, shared, user, label, host, since, session_since, held = seen
    return LockRow(
        name,
        granted,
        session,
        shared=shared,
        user=user,
        label=label or None,
        host=host,
        since=since,
        session_since=session_since,
        other_locks=held - granted,
    )
