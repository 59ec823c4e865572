"""SQL Server: who holds and who waits, as sys.dm_tran_locks shows it to those who may look.

It shows the first 32 characters of a name. https://learn.microsoft.com/en-us/sql/relational-databases/
system-dynamic-management-views/sys-dm-tran-locks-transact-sql
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
from .views import Finding, Look, Sight

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .views import Run

__all__ = ["MSSQLView"]

LOOK = text("""
    SELECT l.resource_description, l.request_mode, l.request_status, l.request_session_id, s.login_name, s.host_name,
           s.program_name, DATEDIFF(second, s.login_time, GETDATE()),
           DATEDIFF(second, s.last_request_start_time, GETDATE())
    FROM sys.dm_tran_locks AS l LEFT JOIN sys.dm_exec_sessions AS s ON s.session_id = l.request_session_id
    WHERE l.resource_type = 'APPLICATION' AND l.resource_database_id = DB_ID()
    ORDER BY s.last_request_start_time
""")
CHECK = text("""
    SELECT CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(128)),
           HAS_PERMS_BY_NAME(NULL, NULL, 'ALTER ANY CONNECTION')
""")
# KILL takes no parameter.
END = text("""
    DECLARE @statement varchar(20) = 'KILL ' + CAST(CAST(:session AS int) AS varchar(11));
    EXEC (@statement);
    SELECT 0
""")

SHOWN = 32
DESCRIPTION = re.compile(r"\d+:\[(.*)\]:\([0-9a-fA-F]+\)", re.DOTALL)
EXCLUSIVE = frozenset({"X", "U", "IX", "SIX", "UIX"})
NO_RIGHT = frozenset({229, 297, 300})
NO_SUCH_VIEW = 208
MAY_NOT_KILL = frozenset({6102, 6120})
NO_SUCH_SESSION = 6106

NOT_ALLOWED = (
    "this database user may not see the server's locks: GRANT VIEW SERVER STATE TO its login "
    "(on Azure SQL Database GRANT VIEW DATABASE STATE)"
)
NO_VIEW = "this server has no sys.dm_tran_locks; is it SQL Server?"


class MSSQLView:
    """Shows the application locks of the current database."""

    def look(self, run: Run, name: str | None, known: Callable[[], Sequence[Any]]) -> Look:
        try:
            rows = run(LOOK)
        except DBAPIError as error:
            match error_number(error):
                case number if number in NO_RIGHT:
                    return Look([], NOT_ALLOWED)
                case number if number == NO_SUCH_VIEW:
                    return Look([], NO_VIEW)
            raise
        names = {full[:SHOWN]: full for full in ([name] if name is not None else known())}
        held = Counter(row[3] for row in rows if row[2] == "GRANT")
        sights = [_sight(row, names, held) for row in rows]
        return Look([sight for sight in sights if name in (None, sight.name)])

    def end(self, run: Run, sight: Sight) -> None:
        now = self.look(run, str(sight.name), list)
        if not any(seen.granted and seen.session == sight.session for seen in now.sights):
            return
        try:
            run(END, session=int(sight.session))
        except DBAPIError as error:
            if error_number(error) in MAY_NOT_KILL:
                raise NotPermittedError(
                    "this database user may not end sessions: GRANT ALTER ANY CONNECTION TO its login"
                ) from error
            if error_number(error) != NO_SUCH_SESSION:
                raise

    def findings(self, run: Run) -> list[Finding]:
        version, ends = run(CHECK)[0]
        missing = self.look(run, None, list).missing
        return [
            Finding("server", None, f"SQL Server {version}"),
            Finding("looking", None, missing or "all locks of this database are shown"),
            Finding("ending", None, f"sessions of other users: {'yes' if ends else 'only with ALTER ANY CONNECTION'}"),
        ]


def _sight(row: Sequence[Any], names: dict[str, str], held: Counter[Any]) -> Sight:
    description, mode, status, session, user, host, label, session_seconds, seconds = row
    found = DESCRIPTION.fullmatch(description.strip())
    cut = found[1] if found else description
    name, granted = names.get(cut, cut), status == "GRANT"
    return Sight(
        name,
        granted,
        session,
        shared=mode not in EXCLUSIVE,
        user=user,
        label=label,
        host=host,
        since=None if granted else _ago(seconds),
        session_since=_ago(session_seconds),
        key=name.partition("|")[2].rpartition("|")[0] or name,
        dies_with=held[session] - granted,
    )


def _ago(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)
