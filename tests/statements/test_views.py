"""What SQL Server's and Oracle's views say, read as their manuals have it; no server was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockInfo, LockProvider, NotPermittedError
from dlock_core.inspection import Inspector
from dlock_core.inspection import mssql as mssql_view
from dlock_core.inspection import oracle as oracle_view
from dlock_core.inspection.base import Run
from dlock_core.inspection.mssql import MSSQLView
from dlock_core.inspection.oracle import OracleView
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
    """Answers with rows, or with an error, and notes what was asked; APPLOCK_TEST knows the names that are held."""

    def __init__(self, *answers: Sequence[Any] | Exception, held: Sequence[str] = (LONG,)) -> None:
        self.answers = list(answers)
        self.held = held
        self.values: list[dict[str, object]] = []

    def __call__(self, statement: sa.TextClause, /, **values: object) -> Sequence[Any]:
        if statement is mssql_view.FREE:
            return [(int(values["name"] not in self.held),)]
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
    holder, waiter, reader = look.rows
    assert (holder.name, holder.key, holder.session, holder.other_locks) == (LONG, "app:orders:42", 51, 1)
    assert (waiter.granted, waiter.host, waiter.since is not None) == (False, "host2", True)
    assert (reader.name, reader.shared) == ("with ] bracket", True)
    assert len(MSSQLView().look(Asked(MSSQL_ROWS), LONG, list).rows) == 2


EU, US = "nightly-report:department-of-finance:eu", "nightly-report:department-of-finance:us"


def _description(name: str, session: int, hashed: str, principal: int = 0) -> tuple[Any, ...]:
    return (f"{principal}:[{name[:32]}]:({hashed})", "X", "GRANT", session, "web", "host1", "dlock", 90, 60)


def test_sql_server_never_takes_a_key_for_another_with_the_same_first_characters() -> None:
    """The server shows no more of them, but knows whether exactly this name is held."""
    view, us = MSSQLView(), [_description(US, 52, "0b")]
    assert view.look(Asked(us, held=[US]), EU, list) == ([], "")
    (row,) = view.look(Asked(us, held=[US]), US, list).rows
    assert (row.name, row.session) == (US, 52)
    (listed,) = view.look(Asked(us, held=[US]), None, lambda: [EU, US]).rows
    assert listed.name == US
    (unknown,) = view.look(Asked(us, held=[US]), None, lambda: [EU]).rows
    assert (unknown.name, unknown.key) == (us[0][0], f"{US[:32]}…")
    (again,) = view.look(Asked(us, held=[US]), str(unknown.name), list).rows
    assert (again.name, again.session, again.key) == (unknown.name, unknown.session, unknown.key)


def test_sql_server_says_when_it_cannot_tell_two_locks_apart() -> None:
    """Both are held: which description belongs to which name is not known, so neither is ended."""
    both = [_description(EU, 51, "0a"), _description(US, 52, "0b")]
    look = MSSQLView().look(Asked(both, held=[EU, US]), EU, list)
    assert {row.session for row in look.rows} == {51, 52}
    assert EU not in {row.name for row in look.rows}
    assert "first 32 characters" in look.missing
    for row in look.rows:
        (found,) = MSSQLView().look(Asked(both, held=[EU, US]), str(row.name), list).rows
        assert (found.name, found.session) == (row.name, row.session)


def test_sql_server_s_locks_of_other_principals_are_other_locks() -> None:
    """Our own are those of the principal "public"."""
    dbo = [_description("k", 51, "0a", principal=1)]
    assert MSSQLView().look(Asked(dbo), "k", list).rows == []
    (row,) = MSSQLView().look(Asked(dbo), None, lambda: ["k"]).rows
    assert row.name == "1:[k]:(0a)"


@pytest.mark.parametrize(
    ("rows", "held", "error", "says"),
    [
        ([_description(EU, 51, "0a"), _description(US, 52, "0b")], [EU, US], NotPermittedError, "first 32 characters"),
        ([_description(US, 52, "0b")], [US], None, ""),
        (_failed(300, MSSQLScene.failure), [EU], NotPermittedError, "VIEW SERVER STATE"),
    ],
    ids=["alike", "another", "hidden"],
)
def test_terminating_never_ends_a_session_that_is_perhaps_another_s(
    rows: Any, held: list[str], error: type[Exception] | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses what the server does not show, and ends no session when the lock is free."""
    asked = Asked(rows, held=held)

    @contextmanager
    def asking(_: Inspector) -> Iterator[Run]:
        yield asked

    monkeypatch.setattr(Inspector, "_asking", asking)
    info = LockInfo(
        **{field.name: None for field in fields(LockInfo)} | {"actual_key": EU, "session": 51}  # type: ignore[arg-type]
    )
    with LockProvider(MSSQLScene().engine()) as locks:
        if error is None:
            assert locks.terminate(info) is False
        else:
            with pytest.raises(error, match=says):
                locks.terminate(info)
    assert not any("session" in values for values in asked.values), "KILL"


def test_oracle_shows_numbers_and_modes() -> None:
    """A holder has a mode, a waiter asks for one."""
    holder, waiter, reader = OracleView().look(Asked(ORACLE_ROWS), None, list).rows
    assert (holder.name, holder.granted, holder.shared, holder.session) == (7, True, False, "101,9,@1")
    assert (waiter.granted, waiter.shared) == (False, True)
    assert (reader.name, reader.other_locks) == (8, 1)


@pytest.mark.parametrize(
    ("view", "error", "says"),
    [
        (MSSQLView(), _failed(300, MSSQLScene.failure), "VIEW SERVER STATE"),
        (MSSQLView(), _failed(208, MSSQLScene.failure), "sys.dm_tran_locks"),
        (MSSQLView(), _failed(33557097, MSSQLScene.failure), "33557097"),
        (OracleView(), _failed(942, OracleScene.failure), "GV_.LOCK"),
    ],
)
def test_a_user_that_may_not_look_learns_the_right(view: Any, error: Exception, says: str) -> None:
    """Nothing is shown, and why."""
    look = view.look(Asked(error), None, list)
    assert look.rows == []
    assert says.replace(".", "") in look.missing.replace("$", "").replace(".", "")


@pytest.mark.parametrize(
    ("view", "rows", "name"), [(MSSQLView(), MSSQL_ROWS, LONG), (OracleView(), ORACLE_ROWS, 7)], ids=["mssql", "oracle"]
)
def test_only_a_session_that_still_holds_is_ended(view: Any, rows: list[Any], name: Any) -> None:
    """By a number or text that was checked, since neither statement takes a bind there."""
    row = view.look(Asked(rows), name, list).rows[0]
    asked = Asked(rows, [])
    assert view.end(asked, row, alone=False)
    assert asked.values[-1] in ({"session": 51}, {"victim": "101,9,@1"})
    free = Asked(rows[1:2])
    assert view.end(free, row, alone=False)
    assert len(free.values) == 1
    busy = Asked(rows)
    assert not view.end(busy, row, alone=True), "it holds another lock by now"
    assert len(busy.values) == 1


@pytest.mark.parametrize(
    ("view", "rows", "name", "denied", "gone", "make"),
    [
        (MSSQLView(), MSSQL_ROWS, LONG, 6102, 6106, MSSQLScene.failure),
        (OracleView(), ORACLE_ROWS, 7, 1031, 30, OracleScene.failure),
    ],
    ids=["mssql", "oracle"],
)
def test_a_user_that_may_not_end_a_session_learns_the_right(
    view: Any, rows: list[Any], name: Any, denied: int, gone: int, make: Callable[[int], Exception]
) -> None:
    """And one that has just ended by itself is no error."""
    row = view.look(Asked(rows), name, list).rows[0]
    with pytest.raises(NotPermittedError, match="GRANT"):
        view.end(Asked(rows, _failed(denied, make)), row, alone=False)
    assert view.end(Asked(rows, _failed(gone, make)), row, alone=False)


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
    for statement in (module.LOOK, module.CHECK, module.END, *([module.FREE] if module is mssql_view else [])):
        assert not statement.compile(dialect=dialect).escaped_bind_names
