"""create_sadlock on SQL Server and Oracle: its options, its modes, and its upgrade."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.oracle.oracledb import OracledbAdaptDBAPI
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from dlock_core import (
    DeadlockError,
    LockLostError,
    LockProvider,
    LockStateError,
    UnsupportedError,
    create_async_sadlock,
    create_sadlock,
)
from dlock_core.sadlock import SadLock
from tests.contract.house import until

from .scenes import MSSQLScene, OracleScene, Scene

SCENES = {"mssql": MSSQLScene, "oracle": OracleScene}


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A server, on which nothing is held afterwards."""
    made: Scene = SCENES[request.param]()
    yield made
    until(lambda: made.held == 0, "the last lock to be free")
    assert not made.crashes


@pytest.fixture
def engine(scene: Scene) -> Iterator[sa.Engine]:
    """The application's engine."""
    engine = scene.engine()
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture(params=["connection", "session"])
def pair(request: pytest.FixtureRequest, engine: sa.Engine) -> Iterator[tuple[Any, Any]]:
    """Two callers, both with connections or both with Sessions bound to the engine."""
    make = engine.connect if request.param == "connection" else lambda: Session(engine)
    with make() as one, make() as other:
        yield one, other


def test_an_update_lock_goes_with_readers_and_not_with_its_like(pair: tuple[Any, Any], engine: sa.Engine) -> None:
    """Nor with an exclusive one; on the caller's connection, or beside it for a Session."""
    one, other = pair
    with create_sadlock(one, "k", update=True) as updater:
        assert (updater.update, updater.lock_mode) in {(True, "Update"), (True, "SSX")}
        assert not create_sadlock(other, "k", update=True).acquire(False)
        assert not create_sadlock(other, "k").acquire(False)
        with engine.connect() as third, create_sadlock(third, "k", shared=True):
            assert not updater.upgrade(timeout=0)
            assert updater.locked
    with create_sadlock(other, "k"):
        pass


def test_an_upgrade_excludes_readers_until_the_release(pair: tuple[Any, Any], engine: sa.Engine) -> None:
    """One release gives both grants back."""
    one, _ = pair
    updater = create_sadlock(one, "k", update=True)
    with engine.connect() as reading:
        reader = create_sadlock(reading, "k", shared=True)
        with updater:
            assert updater.upgrade()
            with pytest.raises(LockStateError, match=r"'k'.*exclusive already"):
                updater.upgrade()
            assert not reader.acquire(False)
        with reader:
            assert updater.acquire(False)
            assert not updater.upgrade(timeout=0)
            updater.release()


def test_an_upgrade_waits_for_the_readers(pair: tuple[Any, Any], scene: Scene, engine: sa.Engine) -> None:
    """And gets the lock when the last one has left."""
    one, _ = pair
    with engine.connect() as reading:
        reader = create_sadlock(reading, "k", shared=True)
        reader.acquire()
        with create_sadlock(one, "k", update=True) as updater:
            answers: list[bool] = []
            thread = threading.Thread(target=lambda: answers.append(updater.upgrade(timeout=20)))
            thread.start()
            until(lambda: scene.locks.queue)
            reader.release()
            thread.join()
            assert answers == [True]


def test_an_upgrade_needs_an_update_lock_that_is_held(engine: sa.Engine) -> None:
    """Two readers that both upgrade would wait for each other."""
    with engine.connect() as connection:
        with create_sadlock(connection, "k", shared=True) as reader, pytest.raises(LockStateError, match="update=True"):
            reader.upgrade()
        with pytest.raises(LockStateError, match="not held"):
            create_sadlock(connection, "k", update=True).upgrade()


def test_a_deadlock_of_upgrades_is_the_servers_answer(pair: tuple[Any, Any], scene: Scene) -> None:
    """The lock stays as it was."""
    with create_sadlock(pair[0], "k", update=True) as updater:
        scene.server.script = [-3 if isinstance(scene, MSSQLScene) else 2]
        with pytest.raises(DeadlockError, match="'k'"):
            updater.upgrade()
        assert updater.locked
        assert scene.held == 1


def test_an_upgrade_of_a_lost_lock_says_so(pair: tuple[Any, Any], scene: Scene) -> None:
    """The server holds nothing for us, whatever we believe."""
    updater = create_sadlock(pair[0], "k", update=True)
    updater.acquire()
    (client,) = scene.locks.holders()
    scene.locks.end(client)
    client.cut = False  # the connection lives
    with pytest.raises(LockLostError, match="'k'"):
        updater.upgrade()
    with pytest.raises(LockLostError, match="'k'"):
        updater.release()


def test_a_second_take_by_the_same_caller_is_a_conflict(pair: tuple[Any, Any]) -> None:
    """A try is refused, a wait would be for oneself."""
    with create_sadlock(pair[0], "k", update=True):
        again = create_sadlock(pair[0], "k", update=True)
        assert not again.acquire(False)
        with pytest.raises(DeadlockError, match="'k'"):
            again.acquire()


def test_a_session_keeps_its_update_lock_through_commit_and_rollback(scene: Scene, engine: sa.Engine) -> None:
    """It is on a connection of its own."""
    with Session(engine) as session, create_sadlock(session, "k", update=True) as lock:
        session.commit()
        session.rollback()
        assert lock.locked
        assert scene.held == 1


def test_an_update_lock_that_was_abandoned_is_released(scene: Scene, engine: sa.Engine) -> None:
    """By the garbage collector."""
    with Session(engine) as session:
        assert create_sadlock(session, "k", update=True).acquire()
        until(lambda: scene.held == 0)
        with create_sadlock(session, "k", update=True):
            assert scene.held == 1


def test_a_name_that_the_server_refuses_costs_no_connection(scene: Scene, engine: sa.Engine) -> None:
    """The caller's transaction goes on."""
    with engine.connect() as connection:
        first = connection.connection.driver_connection
        scene.server.script = [-999 if isinstance(scene, MSSQLScene) else 3]
        with pytest.raises(UnsupportedError, match="'k'"):
            create_sadlock(connection, "k").acquire()
        assert connection.connection.driver_connection is first


MODES = [("mssql", mode) for mode in ("IntentShared", "Shared", "Update", "IntentExclusive", "Exclusive")]
MODES += [("oracle", mode) for mode in ("NL", "SS", "SX", "S", "SSX", "X")]


@pytest.mark.parametrize(("database", "mode"), MODES)
def test_every_mode_can_be_asked_for_by_its_name(database: str, mode: str) -> None:
    """In capitals or not; the server holds it in this very mode."""
    scene = SCENES[database]()
    with scene.engine().connect() as connection, create_sadlock(connection, 5, lock_mode=f" {mode.lower()} ") as lock:
        assert lock.lock_mode == mode
        (client,) = scene.locks.holders()
        assert scene.locks.modes(client, lock.actual_key) == [mode]


def test_an_unknown_mode_is_a_value_error(engine: sa.Engine) -> None:
    """It names those that there are."""
    with engine.connect() as connection:
        for wrong in ("EXCLUSIV", "", 6):
            with pytest.raises(ValueError, match=r"'k'.*lock_mode=.*give one of"):
                create_sadlock(connection, "k", lock_mode=wrong)  # type: ignore[arg-type]


def test_shared_and_exclusive_locks_are_those_of_a_provider(scene: Scene, engine: sa.Engine) -> None:
    """So part of a program can move on before the rest."""
    with LockProvider(scene.engine()) as locks, engine.connect() as connection:
        with create_sadlock(connection, "k"):
            assert not locks.lock("k", shared=True, timeout=0).acquire()
        with create_sadlock(connection, "k", shared=True), locks.lock("k", shared=True, timeout=0):
            assert not locks.lock("k", timeout=0).acquire()
        with create_sadlock(connection, "k", update=True), locks.lock("k", shared=True, timeout=0):
            pass


def test_the_transaction_owns_the_lock_on_sql_server() -> None:
    """Commit and rollback release it, and nothing else does."""
    scene = MSSQLScene()
    engine = scene.engine()
    with engine.connect() as connection, engine.connect() as other:
        lock = create_sadlock(connection, "k", xact=True)
        for end in (connection.commit, connection.rollback):
            with lock:
                pass
            assert lock.locked
            assert not create_sadlock(other, "k").acquire(False)
            end()
            assert not lock.locked
            assert scene.held == 0


class CalledAwayError(Exception):
    """What a signal handler raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], object]]:
    """What lets a handler raise in the main thread after so many seconds."""

    def call_away(*_: object) -> None:
        raise CalledAwayError

    before = signal.signal(signal.SIGALRM, call_away)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.signal(signal.SIGALRM, before)


def test_a_caller_s_connection_is_not_closed_beside_the_cancel_of_its_wait(alarm: Callable[[float], object]) -> None:
    """A signal calls the main thread away and its wait ends, while a helper that cancels it is still in the driver."""
    scene = MSSQLScene()
    engine = scene.engine()
    with engine.connect() as holder, create_sadlock(holder, "k"), engine.connect() as connection:
        alarm(0.1)
        with pytest.raises(CalledAwayError):
            create_sadlock(connection, "k").acquire()
        connection.rollback()
        assert not create_sadlock(connection, "k").acquire(False)
    until(lambda: len(scene.server.logins) == 2, "the session of the wait to be closed")
    assert scene.crashes == []
    engine.dispose()
    assert not scene.server.logins


def test_an_update_lock_of_a_transaction_is_upgraded_and_ends_with_it() -> None:
    """Both grants are the transaction's."""
    scene = MSSQLScene()
    with scene.engine().connect() as connection:
        lock = create_sadlock(connection, "k", xact=True, update=True)
        assert lock.acquire()
        assert lock.upgrade()
        connection.commit()
        assert scene.held == 0


@pytest.mark.parametrize(("scene_type", "option"), [(MSSQLScene, "xact"), (OracleScene, "release_on_commit")])
def test_autocommit_has_no_transaction_to_own_a_lock(scene_type: type[Scene], option: str) -> None:
    """It would be released at once."""
    scene = scene_type()
    engine = scene.engine(isolation_level="AUTOCOMMIT")
    options: Any = {option: True}
    with engine.connect() as connection, pytest.raises(LockStateError, match=f"'k'.*{option}"):
        create_sadlock(connection, "k", **options).acquire()
    assert scene.held == 0


def test_release_on_commit_ends_at_the_commit_or_before() -> None:
    """As Oracle has it: by the transaction's end, by `release()`, or at the end of `with`."""
    scene = OracleScene()
    with scene.engine().connect() as connection:
        lock: SadLock[Any] = create_sadlock(connection, "k", release_on_commit=True)
        with lock:
            assert scene.server.calls[-1][1]["release_on_commit"] is True
            assert scene.held == 1
        assert scene.held == 0
        with lock:
            connection.commit()
            assert (lock.locked, scene.held) == (False, 0)
        lock.acquire()
        lock.release()
        assert scene.held == 0
        with pytest.raises(LockStateError, match="not held"):
            lock.release()
        lock.acquire()
        connection.rollback()
        assert scene.held == 0


@pytest.mark.parametrize(
    ("scene_type", "options", "says"),
    [
        (OracleScene, {"xact": True}, "PostgreSQL and SQL Server"),
        (MSSQLScene, {"release_on_commit": True}, "Oracle"),
    ],
)
def test_an_option_of_the_other_database_is_refused(scene_type: type[Scene], options: Any, says: str) -> None:
    """The error names the databases that know it."""
    with scene_type().engine().connect() as connection, pytest.raises(UnsupportedError, match=f"'k'.*{says}"):
        create_sadlock(connection, "k", **options)


def test_a_caller_s_settings_stay_as_they_are() -> None:
    """`SET NOCOUNT ON` on the caller's session would hide its row counts."""
    scene = MSSQLScene()
    with scene.engine().connect() as connection:
        (login,) = scene.server.logins.values()
        before = dict(login.options)
        with create_sadlock(connection, "k"):
            pass
        assert login.options == before


def test_async_locks_upgrade_too() -> None:
    """Over oracledb's async connections."""
    scene = OracleScene()
    engine = create_async_engine("oracle+oracledb_async://u:p@standin", module=OracledbAdaptDBAPI(scene.module()))

    async def work() -> None:
        async with engine.connect() as connection, engine.connect() as other:
            async with create_async_sadlock(connection, "k", update=True) as lock:
                assert await lock.upgrade(timeout=0)
                assert not await create_async_sadlock(other, "k", shared=True).acquire(False)
            async with create_async_sadlock(other, "k", shared=True):
                pass
        await engine.dispose()

    asyncio.run(work())
    assert scene.held == 0
