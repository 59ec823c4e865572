"""Oracle: who holds and who waits, as GV$LOCK shows it to those who may look.

https://docs.oracle.com/en/database/oracle/oracle-database/19/refrn/V-LOCK.html
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
GONE = frozenset({26, 30, 31})

NOT_ALLOWED = (
    "this database user may not see the server's locks: GRANT SELECT ON SYS.GV_$LOCK and ON SYS.GV_$SESSION "
    "TO that user"
)


class OracleView:
    """Shows the user locks of the whole database."""

    def look(self, run: Run, name: int | None, known: Callable[[], Sequence[Any]]) -> Look:  # noqa: ARG002 - all are shown
        try:
            rows = run(LOOK)
        except DBAPIError as error:
            if error_number(error) in (NO_SUCH_VIEW, NO_RIGHT):
                return Look([], NOT_ALLOWED)
            raise
        held = Counter(row[4] for row in rows if row[1])
        sights = [_sight(row, held) for row in rows]
        return Look([sight for sight in sights if name in (None, sight.name)])

    def end(self, run: Run, sight: Sight) -> None:
        now = self.look(run, int(sight.name), list)
        if not any(seen.granted and seen.session == sight.session for seen in now.sights):
            return
        assert SESSION.fullmatch(str(sight.session)), "it goes into a statement"
        try:
            run(END, victim=str(sight.session))
        except DBAPIError as error:
            if error_number(error) == NO_RIGHT:
                raise NotPermittedError("this database user may not end sessions: GRANT ALTER SYSTEM TO it") from error
            if error_number(error) not in GONE:
                raise

    def findings(self, run: Run) -> list[Finding]:
        version, ends = run(CHECK)[0]
        missing = self.look(run, None, list).missing
        return [
            Finding("server", None, f"Oracle {version}"),
            Finding("looking", None, missing or "all locks of the database are shown"),
            Finding("ending", None, f"sessions of other users: {'yes' if ends else 'only with ALTER SYSTEM'}"),
        ]


def _sight(row: Sequence[Any], held: Counter[Any]) -> Sight:
    number, mode, request, seconds, session, user, host, label, session_seconds = row
    granted = bool(mode)
    return Sight(
        int(number),
        granted,
        session,
        shared=(mode or request) in SHARED_MODES,
        user=user,
        label=label,
        host=host,
        since=_ago(seconds),
        session_since=_ago(session_seconds),
        dies_with=held[session] - granted,
    )


def _ago(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) - timedelta(seconds=float(seconds))
