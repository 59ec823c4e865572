"""Connections that close, break or are exchanged under a lock: nothing is left, no stranger is touched."""

from __future__ import annotations

import gc
import logging
import os
import socket
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from dlock_core import DeadlockError, LockConnectionError, LockLostError, UnsafeEnvironmentError, create_sadlock
from dlock_core.sessions.drivers import driver_of
from dlock_core.sessions.sockets import KEEPALIVE
from tests.contract.house import until

from .clients import Client
from .scene import MISTAKE, Scene, SqlError

on_connections = pytest.mark.kinds("connection")
on_servers = pytest.mark.rows(lambda row: row.is_server)
PROBES = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE)] + [
    (socket.IPPROTO_TCP, getattr(socket, name)) for name in KEEPALIVE if hasattr(socket, name)
]


def _borrow(scene: Scene, engine: Any) -> None:
    """Borrow what is in a pool of one, and see that it has the key no more than any other."""
    borrower, stranger = scene.client(engine, "connection"), scene.client(kind="connection")
    with borrower.lock("k"):
        assert scene.holders == 1
        assert not stranger.lock("k").acquire(False)
    assert scene.holders == 0
    with stranger.lock("k"):
        assert not borrower.lock("k").acquire(False)
    borrower.close()


@on_connections
@on_servers
def test_a_connection_that_is_closed_in_the_body_is_free_at_once(scene: Scene) -> None:
    """The end of the block says that its body was not protected to the end."""
    engine = scene.new_engine(pool_size=1, max_overflow=0)
    client = scene.client(engine)
    with pytest.raises(LockLostError, match=r"'k'.*closed"), client.lock("k") as lock:
        client.close()
        assert not lock.locked
        assert scene.holders == 0
        _borrow(scene, engine)
    _borrow(scene, engine)


@on_connections
@on_servers
def test_a_closed_connection_does_not_hide_the_bodys_error(scene: Scene) -> None:
    """It gets a note."""
    client = scene.client()
    with pytest.raises(ZeroDivisionError) as caught, client.lock("k"):
        client.close()
        raise ZeroDivisionError
    assert any("closed" in note for note in caught.value.__notes__)
    assert scene.holders == 0


@on_connections
@on_servers
def test_an_unreleased_lock_does_not_get_into_the_pool(scene: Scene) -> None:
    """It is released when its connection is closed, also with an unfinished or failed transaction."""
    engine = scene.new_engine(pool_size=1, max_overflow=0)
    for statement in ("SELECT 1", "INSERT INTO work VALUES (1)", MISTAKE):
        client = scene.client(engine)
        lock = client.lock("k")
        assert lock.acquire()
        try:
            client.execute(statement)
        except SqlError:
            assert statement == MISTAKE
        client.close()
        assert scene.holders == 0
        assert not lock.locked
        _borrow(scene, engine)
        with pytest.raises(LockLostError):
            lock.close()
        lock.close()
    assert scene.rows == []


@on_connections
@on_servers
@pytest.mark.rows(lambda row: row.api == "sync")
def test_an_unclosed_connection_takes_no_lock_into_the_pool(scene: Scene) -> None:
    """The garbage collector gives it back, and the lock before."""
    engine = scene.new_engine(pool_size=1, max_overflow=0)
    client = Client.of("connection", engine, scene.run)
    assert client.lock("k").acquire()
    assert scene.holders == 1
    del client
    gc.collect()
    assert scene.holders == 0
    _borrow(scene, engine)


@on_connections
@on_servers
@pytest.mark.parametrize("position", [0, 1])
def test_every_kind_of_pool(scene: Scene, position: int) -> None:
    """What is closed under a lock is free, whichever pool takes it."""
    kinds: tuple[type[sa.Pool], ...] = (sa.pool.NullPool, sa.pool.AsyncAdaptedQueuePool)
    if scene.row.api == "sync":
        kinds = (sa.pool.NullPool, sa.pool.SingletonThreadPool)
    client = scene.client(scene.new_engine(poolclass=kinds[position]))
    with client.lock("k"):
        assert scene.holders == 1
    assert client.lock("k").acquire()
    client.close()
    until(lambda: scene.holders == 0)


@on_connections
@on_servers
def test_a_pool_of_one_connection_for_all(scene: Scene) -> None:
    """With a StaticPool two share one driver connection: each key is theirs once, until its taker closes."""
    engine = scene.new_engine(poolclass=sa.pool.StaticPool)
    one, two = scene.client(engine), scene.client(engine)
    with one.lock("k") as lock:
        assert not two.lock("k").acquire(False)
        with pytest.raises(DeadlockError):
            two.lock("k").acquire()
        assert two.lock("other").acquire()
        assert scene.holders == 2
        two.close()
        assert lock.locked
        assert scene.holders == 1
    assert scene.holders == 0


@on_connections
@on_servers
def test_a_pool_that_does_not_reset(scene: Scene) -> None:
    """It would keep an open transaction, but no lock."""
    engine = scene.new_engine(pool_size=1, max_overflow=0, pool_reset_on_return=None)
    client = scene.client(engine)
    assert client.lock("k").acquire()
    client.close()
    assert scene.holders == 0
    _borrow(scene, engine)


@on_connections
@on_servers
@pytest.mark.parametrize("detached", ["before the lock", "inside"])
def test_a_detached_connection(scene: Scene, detached: str) -> None:
    """It is still the same one, and closing it ends it, although some drivers' SQLAlchemy only forgets."""
    client = scene.client()
    if detached == "before the lock":
        client.run(client.connection.detach)
    lock = client.lock("k")
    with lock:
        if detached == "inside":
            client.run(client.connection.detach)
        assert lock.locked
    assert scene.holders == 0
    assert lock.acquire()
    client.close()
    until(lambda: scene.holders == 0)
    assert not lock.locked


@on_connections
@on_servers
@pytest.mark.parametrize("detached", [False, True])
def test_a_connection_that_is_invalidated_under_a_lock(scene: Scene, detached: bool) -> None:
    """It ends at once, although SQLAlchemy itself does not close a detached one."""
    client = scene.client()
    if detached:
        client.run(client.connection.detach)
    lock = client.lock("k")
    with pytest.raises(LockLostError, match="'k'") as caught, lock:
        client.run(client.target.invalidate)
        assert not lock.locked
    assert caught.value.__traceback__ is not None
    until(lambda: scene.holders == 0)


@on_connections
@on_servers
def test_an_unlock_never_reaches_a_stranger(scene: Scene) -> None:
    """After a reconnect the key is held anew; the old lock object cannot take it away."""
    client = scene.client()
    old, new = client.lock("k"), client.lock("k")
    assert old.acquire()
    client.run(client.target.invalidate)
    until(lambda: scene.holders == 0)
    assert new.acquire()
    assert not old.locked
    with pytest.raises(LockLostError):
        old.release()
    assert new.locked
    assert scene.holders == 1
    new.release()


@on_connections
@on_servers
def test_an_unlock_does_not_follow_a_closed_connection_to_its_next_user(scene: Scene) -> None:
    """The same driver connection holds the key for another then."""
    engine = scene.new_engine(pool_size=1, max_overflow=0)
    first = scene.client(engine)
    old = first.lock("k")
    assert old.acquire()
    first.close()
    second = scene.client(engine)
    with second.lock("k") as new:
        with pytest.raises(LockLostError):
            old.release()
        assert new.locked
        assert scene.holders == 1


@on_servers
def test_a_killed_session_is_a_lost_lock(scene: Scene) -> None:
    """Release says so once; then the object is free for a new attempt."""
    client = scene.client()
    lock = client.lock("k")
    assert lock.acquire()
    scene.witness.break_lock()
    with pytest.raises(LockLostError, match=r"'k'.*session ended"):
        lock.release()
    assert not lock.locked
    with pytest.raises(ValueError, match="not held"):
        lock.release()
    client.rollback()
    with lock:
        assert scene.holders == 1


@on_connections
@on_servers
def test_locked_says_so_when_the_server_has_hung_up(scene: Scene) -> None:
    """Without a statement."""
    client = scene.client()
    lock = client.lock("k")
    assert lock.acquire()
    scene.witness.break_lock()
    until(lambda: not lock.locked)
    with pytest.raises(LockLostError):
        lock.release()


@on_servers
def test_a_killed_session_at_the_end_of_with(scene: Scene) -> None:
    """A body that ended well learns of it."""
    with pytest.raises(LockLostError), scene.client().lock("k"):
        scene.witness.break_lock()


@on_servers
def test_a_killed_session_does_not_hide_the_bodys_error(scene: Scene) -> None:
    """The user's own exception wins, with a note about the loss."""
    client = scene.client()
    with pytest.raises(ZeroDivisionError) as caught, client.lock("k"):
        scene.witness.break_lock()
        raise ZeroDivisionError
    assert any("lost" in note for note in caught.value.__notes__)
    client.rollback()


@on_connections
@on_servers
def test_a_statement_on_a_killed_session_is_the_users_error(scene: Scene) -> None:
    """SQLAlchemy has thrown the connection away by then, and nothing is held or masked."""
    client = scene.client()
    with pytest.raises(sa.exc.DBAPIError) as caught, client.lock("k"):
        scene.witness.break_lock()
        client.execute("SELECT 1")
    assert caught.value.connection_invalidated
    assert any("lost" in note for note in caught.value.__notes__)
    client.rollback()
    with client.lock("k"):
        assert scene.holders == 1


@on_connections
@on_servers
def test_a_killed_session_is_closed_without_noise(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Closing its connection frees what is no longer there; the pool replaces it."""
    engine = scene.new_engine(pool_size=1, max_overflow=0)
    client = scene.client(engine)
    assert client.lock("k").acquire()
    scene.witness.break_lock()
    with caplog.at_level(logging.WARNING, "dlock"):
        client.close()
    assert not [record for record in caplog.records if record.name == "dlock"]
    _borrow(scene, engine)


@on_connections
@on_servers
@pytest.mark.parametrize("timeout", [0, None])
def test_a_session_that_died_before_the_lock(scene: Scene, timeout: float | None) -> None:
    """An error that says so; after a rollback the connection is a new one."""
    client = scene.client()
    scene.kill(client)
    with pytest.raises(LockConnectionError, match="'k'"):
        client.lock("k").acquire(timeout=timeout)
    client.rollback()
    with client.lock("k"):
        assert scene.holders == 1


@on_connections
@on_servers
def test_a_waiter_that_is_killed(scene: Scene) -> None:
    """It holds nothing, and the connection can be used again."""
    holder, client = scene.client(), scene.client()
    with holder.lock("k"):
        waiting = client.begin_call(client.lock("k").acquire, True, 20)
        scene.until_waiting()
        _kill_waiters(scene)
        with pytest.raises(LockConnectionError, match="'k'"):
            waiting.result(10)
    client.rollback()
    with client.lock("k"):
        assert scene.holders == 1


def _kill_waiters(scene: Scene) -> None:
    if scene.row.server == "postgresql":
        scene.witness.scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        )
    elif scene.row.server == "mssql":
        scene.witness.cancel_waiters()
    else:
        scene.witness._kill("CONNECTION", scene.witness.LOCKS, status="PENDING")


@on_connections
@on_servers
def test_disposing_of_the_engine_leaves_a_held_lock_alone(scene: Scene) -> None:
    """The connection is out of the pool then, and stays."""
    engine = scene.new_engine()
    client = scene.client(engine)
    with client.lock("k") as lock:
        scene.run(engine.dispose)
        assert lock.locked
        assert scene.holders == 1
        client.execute("SELECT 1")
    assert scene.holders == 0
    client.run(client.target.invalidate)  # the old pool would keep it


@on_connections
@pytest.mark.rows(lambda row: row.api == "sync")
class TestSessionOnConnection:
    """A Session that its user has bound to a connection: the lock is on this connection."""

    def test_the_lock_outlives_the_sessions_transactions(self, scene: Scene) -> None:
        """And both know of it."""
        client = scene.client()
        session = Session(client.target)
        with create_sadlock(session, "k") as lock:
            session.execute(sa.text("INSERT INTO work VALUES (1)"))
            session.commit()
            assert lock.locked
            assert scene.holders == 1
            assert not client.lock("k").acquire(False) or not scene.row.is_server
            session.execute(sa.text("INSERT INTO work VALUES (2)"))
            session.rollback()
        assert scene.holders == 0
        session.close()
        client.commit()
        assert scene.rows == [1]

    def test_an_sql_error_costs_the_innermost_transaction(self, scene: Scene) -> None:
        """The rows before the Session's savepoint are kept."""
        client = scene.client()
        outer = client.target.begin()
        scene.insert(client, 1)
        with Session(client.target, join_transaction_mode="create_savepoint") as session:
            with pytest.raises(SqlError), create_sadlock(session, "k"):
                session.execute(sa.text("INSERT INTO work VALUES (2)"))
                session.execute(sa.text(MISTAKE))
            assert scene.holders == 0
            session.rollback()
            session.execute(sa.text("INSERT INTO work VALUES (3)"))
            session.commit()
        outer.commit()
        assert scene.rows == [1, 3]


@on_connections
@pytest.mark.rows(lambda row: row.server == "postgresql")
def test_an_unsafe_environment_is_refused_once_for_each_connection(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler that exchanges sessions; a lock of the transaction is safe there."""
    asked: list[object] = []

    def promise(driver_connection: object, pid: int | None = 1) -> int | None:
        asked.append(driver_connection)
        return pid

    monkeypatch.setattr("dlock_core.dialects.postgresql._backend_pid", promise)
    client = scene.client()
    with pytest.raises(UnsafeEnvironmentError, match=r"'k'.*pooler"):
        client.lock("k").acquire()
    assert scene.holders == 0
    assert not client.in_transaction
    with client.lock("k", xact=True):
        client.commit()
    assert len(asked) == 1
    monkeypatch.setattr("dlock_core.dialects.postgresql._backend_pid", lambda driver: promise(driver, None))
    for _ in range(2):
        with client.lock("k"):
            assert scene.holders == 1
    assert len(asked) == 2


@on_connections
@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "mariadb-pymysql"})
def test_the_options_of_the_callers_socket_stay(scene: Scene) -> None:
    """Probes of a silent network are for our own sessions; the caller has chosen for its own."""
    client = scene.client()
    connection = client.connection.connection
    number = driver_of(client.connection.dialect).descriptor(connection.dbapi_connection)
    assert number is not None
    with socket.socket(fileno=os.dup(number)) as seen:
        assert seen.family in (socket.AF_INET, socket.AF_INET6)
        seen.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        before = [seen.getsockopt(*option) for option in PROBES]
        with client.lock("k"):
            assert [seen.getsockopt(*option) for option in PROBES] == before
        assert [seen.getsockopt(*option) for option in PROBES] == before
