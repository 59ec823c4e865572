"""Oracle: holders and waiters, as GV$LOCK shows them to a user with the right.

https://docs.oracle.com/en/database/oracle/oracle-database/19/refrn/V-LOCK.html
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ..dialects.base import error_number
from .base import Finding, LockRow, Snapshot, View, ago, ending, with_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .base import Run

__all__ = ["OracleView"]

LOOK = text("""
    SELECT l.id1, l.lmode, l.request, l.ctime, s.sid || ',' || s.serial# || ',@' || s.inst_id,
           s.username, s.machine, s.client_info, (SYSDATE - s.logon_time) * 86400
    FROM gv$lock l JOIN gv$session s ON s.inst_id = l.inst_id AND s.sid = l.sid
    WHERE l.type = 'UL' ORDER BY l.ctime DESC
""")
CHECK = text("""
    SELECT (SELECT MIN(version) FROM product_component_version),
           (SELECT COUNT(*) FROM session_privs WHERE privilege = 'ALTER SYSTEM') FROM DUAL
""")
END = text("BEGIN EXECUTE IMMEDIATE 'ALTER SYSTEM KILL SESSION ''' || :victim || ''' IMMEDIATE'; END;")

# NL, SS, SX and S go with others of their kind.
SHARED_MODES = frozenset({1, 2, 3, 4})
SESSION = re.compile(r"\d+,\d+,@\d+")
NO_SUCH_VIEW = 942
NO_RIGHT = 1031

NOT_ALLOWED = (
    "this database user may not see the server's locks: GRANT SELECT ON SYS.GV_$LOCK and ON SYS.GV_$SESSION "
    "TO that user"
)


class OracleView(View):
    """Shows the user locks of the whole database."""

    may_not_end = (NO_RIGHT,)
    right_to_end = "this database user may not end sessions: GRANT ALTER SYSTEM TO it"
    gone = (26, 30, 31)

    def look(self, run: Run, name: int | None, known: Callable[[], Sequence[Any]]) -> Snapshot:
        try:
            rows = with_counts(map(_row, run(LOOK)))
        except DBAPIError as error:
            if error_number(error) in (NO_SUCH_VIEW, NO_RIGHT):
                return Snapshot([], NOT_ALLOWED)
            raise
        return Snapshot([row for row in rows if name in (None, row.name)])

    def kill(self, run: Run, row: LockRow) -> None:
        assert SESSION.fullmatch(str(row.session)), "it goes into a statement"
        run(END, victim=str(row.session))

    def findings(self, run: Run) -> list[Finding]:
        version, ends = run(CHECK)[0]
        missing = self.look(run, None, list).missing
        return [
            Finding("server", None, f"Oracle {version}"),
            Finding("looking", None, missing or "all locks of the database are shown"),
            ending(ends, "ALTER SYSTEM"),
        ]


def _row(seen: Sequence[Any]) -> LockRow:
    number, mode, request, seconds, session, user, host, label, session_seconds = seen
    return LockRow(
        int(number),
        bool(mode),
        session,
        shared=(mode or request) in SHARED_MODES,
        user=user,
        label=label,
        host=host,
        since=ago(seconds),
        session_since=ago(session_seconds),
    )
