"""SQL Server: holders and waiters, as sys.dm_tran_locks shows them to a user with the right.

It shows the first 32 characters of a name, and a hash whose making is not documented. Whether a longer name is
the one that is shown, only APPLOCK_TEST can tell. https://learn.microsoft.com/en-us/sql/relational-databases/
system-dynamic-management-views/sys-dm-tran-locks-transact-sql
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..dialects.base import error_number
from ..dialects.failures import connection_lost, first_line
from .base import Finding, LockRow, Snapshot, View, ago, ending, with_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .base import Run

__all__ = ["MSSQLView"]

LOOK = text("""
    SELECT l.resource_description, l.request_mode, l.request_status, l.request_session_id, s.login_name, s.host_name,
           s.program_name, DATEDIFF(second, s.login_time, GETDATE()),
           DATEDIFF(second, s.last_request_start_time, GETDATE())
    FROM sys.dm_tran_locks AS l LEFT JOIN sys.dm_exec_sessions AS s ON s.session_id = l.request_session_id
    WHERE l.resource_type = 'APPLICATION' AND l.resource_database_id = DB_ID()
    ORDER BY s.last_request_start_time
""")
# 0 when the lock of exactly this name is held.
FREE = text("SELECT APPLOCK_TEST('public', CAST(:name AS nvarchar(255)), 'Exclusive', 'Session')")
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
# The number of a database principal, ours being "public", then the name's beginning and its hash.
DESCRIPTION = re.compile(r"(\d+):\[(.*)\]:\([0-9a-fA-F]+\)", re.DOTALL)
PUBLIC = "0"
DIGEST = re.compile(r"[0-9a-f]{8}\|(.+?)(?:\|[0-9a-f]{24})?", re.DOTALL)
EXCLUSIVE = frozenset({"X", "U", "IX", "SIX", "UIX"})
NO_RIGHT = frozenset({229, 297, 300})

NOT_ALLOWED = (
    "this database user may not see the server's locks: GRANT VIEW SERVER STATE TO its login "
    "(on Azure SQL Database GRANT VIEW DATABASE STATE)"
)
NO_VIEW = "this server does not show its locks in sys.dm_tran_locks ({}); is it SQL Server?"
ALIKE = (
    "SQL Server shows the first 32 characters of a lock's name, and several locks that begin like {} are held: which "
    "of them this one is cannot be seen. Give keys that differ in their first 32 characters"
)


class MSSQLView(View):
    """Shows the application locks of the current database."""

    may_not_end = (6102, 6120)
    right_to_end = "this database user may not end sessions: GRANT ALTER ANY CONNECTION TO its login"
    gone = (6106,)

    def look(self, run: Run, name: str | None, known: Callable[[], Sequence[Any]]) -> Snapshot:
        try:
            # Before and after: what is held at both times is what was seen between, and not another name like it.
            if name is not None and _is_cut(name) and not DESCRIPTION.fullmatch(name) and not _held(run, name):
                return Snapshot([])
            seen = run(LOOK)
        except DBAPIError as error:
            if connection_lost(error):
                raise
            denied = error_number(error) in NO_RIGHT
            return Snapshot([], NOT_ALLOWED if denied else NO_VIEW.format(first_line(error)))
        names = _names(run, seen, [name] if name is not None else known())
        rows = with_counts(_row(one, names) for one in seen)
        if name is None:
            return Snapshot(rows)
        found = [row for row in rows if row.name == name]
        alike = [row for row in rows if _beginning(str(row.name)) == _cut(name)] if _is_cut(name) else []
        if found or not alike or not _held(run, name):
            return Snapshot(found)
        return Snapshot(alike, ALIKE.format(name))

    def kill(self, run: Run, row: LockRow) -> None:
        run(END, session=int(row.session))

    def findings(self, run: Run) -> list[Finding]:
        version, ends = run(CHECK)[0]
        missing = self.look(run, None, list).missing
        return [
            Finding("server", None, f"SQL Server {version}"),
            Finding("looking", None, missing or "all locks of this database are shown"),
            ending(ends, "ALTER ANY CONNECTION"),
        ]


def _cut(name: str) -> str:
    """Return what SQL Server shows of a name: characters there are those of UTF-16."""
    return name.encode("utf-16-le")[: 2 * SHOWN].decode("utf-16-le", "ignore")


def _is_cut(name: str) -> bool:
    """Tell whether a name is so long that it shares what is shown of it with others."""
    return len(name.encode("utf-16-le")) >= 2 * SHOWN


def _beginning(description: str) -> str | None:
    """Return what a description shows of a name; None for a lock of another principal, which is another lock."""
    found = DESCRIPTION.fullmatch(description)
    return found[2] if found and found[1] == PUBLIC else None


def _held(run: Run, name: str) -> bool:
    return not run(FREE, name=name)[0][0]


def _names(run: Run, rows: Sequence[Any], candidates: Iterable[str]) -> dict[str, str]:
    """Return the names of descriptions, as far as they are certain: a long one by a candidate that is held."""
    descriptions = {row[0].strip() for row in rows}
    shown = {description: cut for description in descriptions if (cut := _beginning(description)) is not None}
    names: dict[str, str] = {description: cut for description, cut in shown.items() if not _is_cut(cut)}
    often = Counter(shown.values())
    fitting: dict[str, list[str]] = {}
    for name in dict.fromkeys(candidates):
        if _is_cut(name) and often[_cut(name)] == 1 and _held(run, name):
            fitting.setdefault(_cut(name), []).append(name)
    long = {description: fitting.get(cut, ()) for description, cut in shown.items() if often[cut] == 1}
    return names | {description: fits[0] for description, fits in long.items() if len(fits) == 1}


def _row(seen: Sequence[Any], names: dict[str, str]) -> LockRow:
    mode, status, session, user, host, label, session_seconds, seconds = seen[1:]
    description: str = seen[0].strip()
    granted, cut = status == "GRANT", _beginning(description)
    # The description itself is the name of what has no certain one: it tells two locks apart.
    name: str = names.get(description, description)
    readable = name if description in names or cut is None else f"{cut}…"
    return LockRow(
        name,
        granted,
        session,
        shared=mode not in EXCLUSIVE,
        user=user,
        label=label,
        host=host,
        since=None if granted else ago(seconds),
        session_since=ago(session_seconds),
        key=_readable(readable),
    )


def _readable(name: str) -> str:
    """Leave out the digest around a readable part."""
    found = DIGEST.fullmatch(name)
    return found[1] if found else name
