"""Every code that the documentation of sp_getapplock and DBMS_LOCK lists, and what we make of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import DeadlockError, LockConnectionError, LockProvider, UnsafeEnvironmentError, UnsupportedError
from dlock_core.dialects import DATABASES
from dlock_core.dialects.base import error_number
from dlock_core.dialects.failures import connection_lost
from dlock_core.dialects.oracle import Oracle
from tests.contract.rows import ROWS

from .scenes import MSSQLScene, OracleScene, Scene

# Of the manuals' pages for each function.
Answer = bool | None | type[Exception]
# Every answer that the manual's page of each function names.
EXPECTED: dict[str, dict[int, Answer]] = {
    "sp_getapplock": {
        0: True,
        1: True,
        -1: False,
        -2: LockConnectionError,
        -3: DeadlockError,
        -999: UnsupportedError,
    },
    "sp_releaseapplock": {0: True, -999: LockConnectionError},
    "REQUEST": {0: True, 1: False, 2: DeadlockError, 3: UnsupportedError, 4: DeadlockError, 5: UnsupportedError},
    "CONVERT": {0: True, 1: False, 2: DeadlockError, 3: UnsupportedError, 4: None, 5: UnsupportedError},
    "RELEASE": {0: True, 3: LockConnectionError, 4: False, 5: LockConnectionError},
}
CASES = [(function, code) for function, answers in EXPECTED.items() for code in answers]


def _scene(function: str) -> Scene:
    return MSSQLScene() if function.startswith("sp_") else OracleScene()


def _call(function: str, session: Any) -> Any:
    match function:
        case "sp_getapplock":
            return session.acquire("k", shared=False, timeout=1, label=None)
        case "REQUEST":
            return session.acquire(7, shared=False, timeout=1, label=None)
        case "CONVERT":
            return Oracle().upgrade(session, 7, scope="session", timeout=1)
        case _:
            return session.release("k" if function.startswith("sp_") else 7, shared=False)


def test_no_database_lacks_a_row_of_the_contract() -> None:
    """A dialect that nothing runs on is not done."""
    assert {row.drivername.partition("+")[0] for row in ROWS} == set(DATABASES)


@pytest.mark.parametrize(("function", "code"), CASES)
def test_a_code_is_read_as_its_manual_says(function: str, code: int) -> None:
    """Granted, refused, not held, or an error of ours."""
    scene = _scene(function)
    session = scene.session()
    if function in ("sp_releaseapplock", "RELEASE", "CONVERT"):
        assert session.acquire("k" if function.startswith("sp_") else 7, shared=False, timeout=0, label=None)
    scene.server.script = [code]
    expected = EXPECTED[function][code]
    if isinstance(expected, type):
        with pytest.raises(expected):
            _call(function, session)
    else:
        assert _call(function, session) is expected
    assert scene.server.script == []


@pytest.mark.parametrize("scene", [MSSQLScene(), OracleScene()], ids=["mssql", "oracle"])
def test_an_undocumented_code_is_no_grant_and_ends_the_session(scene: Scene) -> None:
    """It may have been a grant, so what is on the session is lost, and the next session is asked."""
    with LockProvider(scene.engine()) as locks:
        other, lock = locks.lock("other"), locks.lock("k")
        assert other.acquire()
        scene.server.script = [77]
        assert lock.acquire(timeout=0)
        assert other.lost
        assert scene.held == 1
        lock.release()
        assert scene.held == 0


@pytest.mark.parametrize(("scene", "code"), [(MSSQLScene(), -999), (MSSQLScene(), -3), (OracleScene(), 3)])
def test_a_refused_question_costs_no_lock(scene: Scene, code: int) -> None:
    """The error is the server's own answer: what the session holds, it keeps."""
    with LockProvider(scene.engine()) as locks:
        with locks.lock("other"):
            scene.server.script = [code]
            with pytest.raises((UnsupportedError, DeadlockError), match="'k'"):
                locks.lock("k").acquire(timeout=0)
            assert scene.held == 1
        assert scene.held == 0


def test_error_1223_at_release_means_that_the_lock_was_not_held() -> None:
    """Our own look before the release makes it rare; it is no error of the connection."""
    scene = MSSQLScene()
    session = scene.session()
    assert session.acquire("k", shared=False, timeout=0, label=None)
    scene.server.script = [scene.failure(1223)]
    assert session.release("k", shared=False) is False


def test_releasing_what_is_not_held_raises_no_error_at_the_server() -> None:
    """Error 1223 would doom a caller's transaction under XACT_ABORT, so the procedure is not even called."""
    scene = MSSQLScene()
    session = scene.session()
    scene.server.script = [AssertionError("called")]
    assert session.release("k", shared=False) is False


@pytest.mark.parametrize(
    ("scene", "number"),
    [
        *((MSSQLScene(), number) for number in (596, 6005, 40613)),
        *((OracleScene(), number) for number in (28, 1012, 1089, 2399, 3113, 12537)),
    ],
)
def test_errors_after_which_the_session_is_gone(scene: Scene, number: int) -> None:
    """A lock on it is lost, and the next one comes from another session."""
    session = scene.session()
    scene.server.script = [scene.failure(number)]
    with pytest.raises(sa.exc.DBAPIError) as caught:
        session.acquire("k" if isinstance(scene, MSSQLScene) else 7, shared=False, timeout=1, label=None)
    assert connection_lost(caught.value)


def test_an_error_that_is_none_of_these_passes_through() -> None:
    """As the driver raised it."""
    scene = MSSQLScene()
    session = scene.session()
    scene.server.script = [scene.failure(8152)]
    with pytest.raises(sa.exc.ProgrammingError, match="8152") as caught:
        session.acquire("k", shared=False, timeout=1, label=None)
    assert not connection_lost(caught.value)


def _pymssql_error() -> BaseException:
    return Exception(1223, b"Cannot release the application lock")


def _pyodbc_error() -> BaseException:
    return Exception("42000", "[42000] [FreeTDS][SQL Server]Cannot (5) release (1223) (SQLExecDirectW)")


def _oracledb_error() -> BaseException:
    return OracleScene.failure(1223)


@pytest.mark.parametrize("make", [_pymssql_error, _pyodbc_error, _oracledb_error])
def test_the_number_of_an_error_is_found_whatever_the_driver(make: Callable[[], BaseException]) -> None:
    """None of them is imported for it."""
    assert error_number(make()) == 1223


@pytest.mark.parametrize("error", [Exception(), Exception("HY000", "nothing"), Exception("text")])
def test_an_error_without_a_number_has_none(error: BaseException) -> None:
    """And no other error comes of it."""
    assert error_number(error) is None


def test_a_missing_grant_is_an_error_that_says_which_one() -> None:
    """At the first lock, with the words for the DBA."""
    scene = OracleScene()
    scene.server.granted = False
    with (
        LockProvider(scene.engine()) as locks,
        pytest.raises(UnsupportedError, match=r"GRANT EXECUTE ON SYS\.DBMS_LOCK"),
    ):
        locks.lock("k").acquire()


@pytest.mark.parametrize(
    ("scene", "spoil", "says"),
    [
        (MSSQLScene(), {"updateability": "READ_ONLY"}, "ApplicationIntent=ReadWrite"),
        (OracleScene(), {"role": "PHYSICAL STANDBY"}, "PHYSICAL STANDBY.*primary"),
    ],
    ids=["mssql", "oracle"],
)
def test_a_replica_is_refused(scene: Scene, spoil: dict[str, str], says: str) -> None:
    """A lock there excludes no session; `allow_unsafe` takes it all the same."""
    for name, value in spoil.items():
        setattr(scene.server, name, value)
    with LockProvider(scene.engine()) as locks, pytest.raises(UnsafeEnvironmentError, match=says):
        locks.lock("k").acquire()
    with LockProvider(scene.engine(), allow_unsafe=True) as bold, bold.lock("k"):
        assert scene.held == 1


def test_a_pooled_server_of_oracle_is_refused() -> None:
    """DRCP would keep the session, and its locks, beyond our close."""
    scene = OracleScene()
    connect = scene.server.open

    def pooled(**options: Any) -> Any:
        session = connect(**options)
        session.dsn = "host/service:pooled"
        return session

    scene.server.open = pooled
    with LockProvider(scene.engine()) as locks, pytest.raises(UnsafeEnvironmentError, match="DRCP"):
        locks.lock("k").acquire()


def test_a_limit_of_the_driver_does_not_end_our_waits() -> None:
    """What the application gave for its own statements is lifted on sessions of ours."""
    mssql, oracle = MSSQLScene(), OracleScene()
    for scene, name in ((mssql, "timeout"), (oracle, "call_timeout")):
        engine = scene.engine()
        sa.event.listen(engine, "connect", lambda connection, _, name=name: setattr(connection, name, 5))
        with LockProvider(engine) as locks, locks.lock("k"):
            (session,) = locks._coordinator._sessions
            assert getattr(session.driver_connection, name) == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("timeout", "asked"), [(0, 0), (0.0001, 1), (0.0011, 2), (1.5, 1500), (None, -1), (10**9, 2**31 - 1)]
)
def test_sql_server_waits_milliseconds(timeout: float | None, asked: int) -> None:
    """Rounded up; the longest wait is asked for again."""
    from dlock_core.dialects.mssql import _milliseconds

    assert _milliseconds(timeout) == asked


@pytest.mark.parametrize(
    ("timeout", "asked"), [(0.0001, "1"), (0.0011, "2"), (1.5, "1500"), (None, "0"), (10**9, str(2**31 - 1))]
)
def test_postgresql_waits_milliseconds(timeout: float | None, asked: str) -> None:
    """Rounded up, since 0 would be no limit."""
    from dlock_core.dialects.postgresql import milliseconds

    assert milliseconds(timeout) == asked


@pytest.mark.parametrize(
    ("timeout", "asked"), [(0, 0), (0.2, 1), (1, 1), (1.5, 2), (None, 32767), (32767, 32766), (10**9, 32766)]
)
def test_oracle_waits_whole_seconds(timeout: float | None, asked: int) -> None:
    """Rounded up; 32767 waits without limit, so a longer wait is asked for again."""
    scene = OracleScene()
    session = scene.session()
    assert session.acquire(7, shared=False, timeout=timeout, label=None)
    assert scene.server.calls[-1][1]["timeout"] == asked


def test_a_long_wait_is_asked_for_in_rounds() -> None:
    """Nine hours pass as code 1, twice, before the grant."""
    scene = OracleScene()
    with LockProvider(scene.engine()) as locks:
        scene.server.script = [1, 1, 1, 0]
        lock = locks.lock("k")
        assert lock.acquire(timeout=100_000)
    requests = [arguments["timeout"] for function, arguments in scene.server.calls if function == "REQUEST"]
    assert requests == [0, 32766, 32766, 32766]


def test_what_people_see_of_an_oracle_session() -> None:
    """The numbers of locks say nothing, so a session that waits, or has one lock, shows its key."""
    scene = OracleScene()
    with LockProvider(scene.engine(), share_sessions=False) as locks, locks.lock("orders:42"):
        assert re.match(r"dlock orders:42 \S+:\d+$", scene.server.sessions[0].client_info)
    with LockProvider(scene.engine(), share_sessions=False, show_keys=False) as locks, locks.lock("orders:42"):
        assert "orders" not in scene.server.sessions[-1].client_info


@pytest.mark.parametrize("scene", [MSSQLScene(), OracleScene()], ids=["mssql", "oracle"])
def test_no_statement_has_a_bind_that_must_be_renamed(scene: Scene) -> None:
    """A name that is a word of the database would reach the driver under another name."""
    from dlock_core.dialects import mssql, oracle

    dialect = scene.engine().dialect
    module = mssql if isinstance(scene, MSSQLScene) else oracle
    statements = [value for value in vars(module).values() if isinstance(value, sa.TextClause)]
    assert len(statements) > 5
    for statement in statements:
        compiled: Any = statement.compile(dialect=dialect)
        assert not compiled.escaped_bind_names
        assert "%" not in compiled.string
