"""What SQL Server's and Oracle's views say, read as their manuals have it; no server was asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import NotPermittedError
from dlock_core.dialects import mssql_view, oracle_view
from dlock_core.dialects.mssql_view import MSSQLView
from dlock_core.dialects.oracle_view import OracleView
from dlock_core.keys import mssql_name

from .scenes import MSSQLScene, OracleScene

LONG = mssql_name("app", "orders:42")
MSSQL_ROWS = [
    (f"0:[{LONG[:32]}]:(a1b2c3d4)", "X", "GRANT", 51, "web", "host1", "dlock app", 90, 60),
    (f"0:[{LONG[:32]}]:(a1b2c3d4)", "X", "WAIT", 52, "web", "host2", None, 30, 5),
    ("0:[with ] bracket]:(0f)", "S", "GRANT", 51, "web", "host1", "dlock app", 90, 60),
]
ORACLE_ROWS = [
    (7, 6, 0, 12, "101,9,@1", "WEB", "host1", "dlock orders host1:1", 90.5),
    (7, 0, 2, 3, "102,4,@2", "WEB", "host2", None, 10),
    (8, 2, 0, 1, "101,9,@1", "WEB", "host1", None, 90.5),
]


class Asked:
    """Answers with rows, or with an error, and notes what was asked."""

    def __init__(self, *answers: Sequence[Any] | Exception) -> None:
        self.answers = list(answers)
        self.values: list[dict[str, object]] = []

    def __call__(self, statement: sa.TextClause, /, **values: object) -> Sequence[Any]:
        self.values.append(values)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _failed(number: int, make: Callable[[int], Exception]) -> sa.exc.DBAPIError:
    original = make(number)
    if not isinstance(original, sa.exc.DBAPIError) and hasattr(original, "number"):  # the stand-in's own
        original = Exception("42000", f"failed ({number}) (SQLExecDirectW)")
    return sa.exc.DBAPIError("", {}, original)


def test_sql_server_shows_names_that_this_process_knows_in_full() -> None:
    """And of all others the first 32 characters; the key is what people read of it."""
    look = MSSQLView().look(Asked(MSSQL_ROWS), None, lambda: [LONG])
    holder, waiter, reader = look.sights
    assert (holder.name, holder.key, holder.session, holder.dies_with) == (LONG, "app:orders:42", 51, 1)
    assert (waiter.granted, waiter.host, waiter.since is not None) == (False, "host2", True)
    assert (reader.name, reader.shared) == ("with ] bracket", True)
    assert len(MSSQLView().look(Asked(MSSQL_ROWS), LONG, list).sights) == 2


def test_oracle_shows_numbers_and_modes() -> None:
    """A holder has a mode, a waiter asks for one."""
    holder, waiter, reader = OracleView().look(Asked(ORACLE_ROWS), None, list).sights
    assert (holder.name, holder.granted, holder.shared, holder.session) == (7, True, False, "101,9,@1")
    assert (waiter.granted, waiter.shared) == (False, True)
    assert (reader.name, reader.dies_with) == (8, 1)


@pytest.mark.parametrize(
    ("view", "error", "says"),
    [
        (MSSQLView(), _failed(300, MSSQLScene.failure), "VIEW SERVER STATE"),
        (MSSQLView(), _failed(208, MSSQLScene.failure), "sys.dm_tran_locks"),
        (OracleView(), _failed(942, OracleScene.failure), "GV_.LOCK"),
    ],
)
def test_who_may_not_look_is_told_the_right(view: Any, error: Exception, says: str) -> None:
    """Nothing is shown, and why."""
    look = view.look(Asked(error), None, list)
    assert look.sights == []
    assert says.replace(".", "") in look.missing.replace("$", "").replace(".", "")


@pytest.mark.parametrize(
    ("view", "rows", "name"), [(MSSQLView(), MSSQL_ROWS, LONG), (OracleView(), ORACLE_ROWS, 7)], ids=["mssql", "oracle"]
)
def test_only_a_session_that_still_holds_is_ended(view: Any, rows: list[Any], name: Any) -> None:
    """By a number or text that was checked, since neither statement takes a bind there."""
    sight = view.look(Asked(rows), name, list).sights[0]
    asked = Asked(rows, [])
    view.end(asked, sight)
    assert asked.values[-1] in ({"session": 51}, {"victim": "101,9,@1"})
    free = Asked(rows[1:2])
    view.end(free, sight)
    assert len(free.values) == 1


@pytest.mark.parametrize(
    ("view", "rows", "name", "denied", "gone", "make"),
    [
        (MSSQLView(), MSSQL_ROWS, LONG, 6102, 6106, MSSQLScene.failure),
        (OracleView(), ORACLE_ROWS, 7, 1031, 30, OracleScene.failure),
    ],
    ids=["mssql", "oracle"],
)
def test_who_may_not_end_a_session_is_told_the_right(
    view: Any, rows: list[Any], name: Any, denied: int, gone: int, make: Callable[[int], Exception]
) -> None:
    """And one that has just ended by itself is no error."""
    sight = view.look(Asked(rows), name, list).sights[0]
    with pytest.raises(NotPermittedError, match="GRANT"):
        view.end(Asked(rows, _failed(denied, make)), sight)
    view.end(Asked(rows, _failed(gone, make)), sight)


@pytest.mark.parametrize(
    ("view", "missing", "says"),
    [
        (MSSQLView(), _failed(300, MSSQLScene.failure), "VIEW SERVER STATE"),
        (OracleView(), _failed(942, OracleScene.failure), "GV_"),
    ],
    ids=["mssql", "oracle"],
)
def test_the_findings_tell_version_and_rights(view: Any, missing: Exception, says: str) -> None:
    """What one may see, and end."""
    server, looking, ending = view.findings(Asked([("19.3", 0)], missing))
    assert "19.3" in server.detail
    assert says in looking.detail
    assert "only with ALTER" in ending.detail
    assert "all locks" in view.findings(Asked([("19.3", 1)], []))[1].detail


@pytest.mark.parametrize("module", [mssql_view, oracle_view])
def test_the_statements_compile_on_their_dialect(module: Any) -> None:
    """Without a bind that had to be renamed."""
    dialect = (MSSQLScene() if module is mssql_view else OracleScene()).engine().dialect
    for statement in (module.LOOK, module.CHECK, module.END):
        assert not statement.compile(dialect=dialect).escaped_bind_names
