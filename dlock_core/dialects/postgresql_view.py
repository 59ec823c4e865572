"""PostgreSQL: who holds and who waits, from pg_locks and pg_stat_activity.

Every role sees all locks of its database, and of other roles' sessions the name of the role and of the
application; pg_monitor or pg_read_all_stats shows their address and age too. When a lock was granted
is not recorded. https://www.postgresql.org/docs/current/view-pg-locks.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..errors import NotPermittedError
from .base import sqlstate
from .views import Finding, Look, Sight, room

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .views import Run

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
# Looks once more, since a session that ended may have left its number to another.
END = text("""
    SELECT pg_catalog.pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid = :session
      AND (CAST(l.classid AS bigint) << 32) | CAST(l.objid AS bigint) = CAST(:name AS bigint)
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
INSUFFICIENT_PRIVILEGE = "42501"


class PostgreSQLView:
    """Shows all, to every role."""

    def look(self, run: Run, name: int | None, known: Callable[[], Sequence[Any]]) -> Look:  # noqa: ARG002
        run(LIMIT)
        return Look([_sight(row) for row in run(LOOK, name=name)])

    def end(self, run: Run, sight: Sight) -> None:
        try:
            run(END, session=sight.session, name=sight.name)
        except DBAPIError as error:
            if sqlstate(error) != INSUFFICIENT_PRIVILEGE:
                raise
            raise NotPermittedError(
                f"this database user may not end a session of {sight.user or 'that user'}: "
                f"connect as {sight.user or 'that user'}, or GRANT pg_signal_backend TO your user "
                "(a superuser's session needs a superuser)"
            ) from error

    def findings(self, run: Run) -> list[Finding]:
        version, used, most, locks, sees, ends = run(CHECK)[0]
        stats = "age and address of all users' sessions are shown"
        return [
            Finding("server", None, f"PostgreSQL {version}"),
            room(used, most),
            Finding("locks", None, f"room for at least {locks} at a time, of all kinds (max_locks_per_transaction)"),
            Finding("looking", None, stats if sees else f"GRANT pg_read_all_stats, and {stats}"),
            Finding(
                "ending", None, f"sessions of other users: {'yes' if ends else 'only with GRANT pg_signal_backend'}"
            ),
        ]


def _sight(row: Sequence[Any]) -> Sight:
    name, granted, session, shared, user, label, host, since, session_since, held = row
    return Sight(
        name,
        granted,
        session,
        shared=shared,
        user=user,
        label=label or None,
        host=host,
        since=since,
        session_since=session_since,
        dies_with=held - granted,
    )
