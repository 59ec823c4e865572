"""Sessions that are bound to an engine: their locks live on connections of their own."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import scoped_session, sessionmaker

from dlock_core import LockLostError, create_sadlock
from tests.contract.house import until

from .clients import Client
from .scene import MISTAKE, Scene, SqlError, open_engines

pytestmark = pytest.mark.kinds("session", "scoped")


def test_closing_the_session_leaves_the_lock_to_its_holder(scene: Scene) -> None:
    """Like commit and rollback, it gives a connection back which is not the lock's."""
    client = scene.client()
    with client.lock("k") as lock:
        scene.insert(client, 1)
        client.close()
        assert lock.locked
        assert scene.holders == 1
    assert scene.holders == 0
    assert scene.rows == []


@pytest.mark.rows(lambda row: row.is_server)
def test_a_lock_takes_no_slot_of_the_pool(scene: Scene) -> None:
    """Not even while it is taken: the pool of one connection is in use by the session itself."""
    engine: Any = scene.new_engine(pool_size=1, max_overflow=0, pool_timeout=2)
    client = scene.client(engine)
    scene.insert(client, 1)
    assert scene.pool(engine).checkedout() == 1
    with client.lock("k", 5):
        assert scene.pool(engine).checkedout() == 1
        client.commit()
        scene.insert(client, 2)
        client.commit()
    assert scene.rows == [1, 2]


def test_the_session_keeps_its_transaction_when_the_body_fails(scene: Scene) -> None:
    """Nothing of it is rolled back by the lock, and what the database kept can be committed."""
    client = scene.client()
    scene.insert(client, 1)
    with pytest.raises(ZeroDivisionError), client.lock("k"):
        scene.insert(client, 2)
        raise ZeroDivisionError
    assert client.in_transaction
    client.commit()
    assert scene.rows == [1, 2]


@pytest.mark.rows(lambda row: row.is_server)
def test_the_lock_lives_when_the_sessions_own_connection_is_killed(scene: Scene) -> None:
    """The user's statement fails, and the body goes on under the lock."""
    client = scene.client()
    scene.insert(client, 1)
    with client.lock("k") as lock:
        scene.kill(client)
        with pytest.raises(sa.exc.DBAPIError):
            scene.insert(client, 2)
        client.rollback()
        assert lock.locked
        assert scene.holders == 1
        scene.insert(client, 3)
        client.commit()
    assert scene.rows == [3]


@pytest.mark.rows(lambda row: row.is_server)
def test_the_killed_session_of_a_lock_costs_nothing_of_the_users_work(scene: Scene) -> None:
    """The user learns of the loss, and can still commit or roll back."""
    client = scene.client()
    with pytest.raises(LockLostError, match="'k'"), client.lock("k"):
        scene.insert(client, 1)
        scene.witness.break_lock()
    client.commit()
    assert scene.rows == [1]


def test_a_lock_that_was_abandoned_is_released(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The garbage collector finds it; a line in the log tells of it."""
    client = Client.of(scene.kind, scene.engine, scene.run)
    with caplog.at_level(logging.WARNING, "dlock"):
        assert client.lock("k").acquire()
        client.close()
        gc.collect()
        until(lambda: scene.holders == 0 and not open_engines())
    assert "'k'" in caplog.text


def test_nothing_is_open_when_nothing_is_held(scene: Scene) -> None:
    """The lock's connection ends with the last lock; those of the pool stay."""
    client, other = scene.client(), scene.client()
    client.scalar("SELECT 1")
    other.scalar("SELECT 1")
    before = scene.witness.sessions()
    with client.lock("a"), client.lock("b"), other.lock("c"):
        if scene.row.is_server:
            assert scene.witness.sessions() == before + 2
        assert not other.lock("a").acquire(timeout=0.01)
    until(lambda: scene.witness.sessions() == before)


@pytest.mark.rows(lambda row: row.server == "postgresql")
def test_the_server_shows_which_key_a_session_holds(scene: Scene) -> None:
    """With the name of the suite, host and process, as for a provider's locks."""
    holders = "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"
    with scene.client().lock("orders:42"):
        [(name,)] = scene.witness.all(holders)
        assert name.startswith("dlock orders:42 ")


def test_a_mistake_while_the_lock_is_taken_stays_where_it_is(scene: Scene) -> None:
    """A session in a failed transaction can take a lock all the same."""
    client = scene.client()
    with pytest.raises(SqlError):
        client.execute(MISTAKE)
    with client.lock("k"):
        assert scene.holders == 1
    client.rollback()


@pytest.mark.kinds("scoped")
@pytest.mark.rows(lambda row: row.api == "sync")
def test_a_scoped_session_is_another_one_in_each_scope(scene: Scene) -> None:
    """The one of the scope where `acquire` is called, as for everything else it does."""
    assert isinstance(scene.engine, sa.Engine)
    scope = ["one"]
    registry = scoped_session(sessionmaker(scene.engine), lambda: scope[0])
    first, second = create_sadlock(registry, "k"), create_sadlock(registry, "k")
    with first:
        scope[0] = "two"
        assert not second.acquire(timeout=0.01)  # another session: no DeadlockError, it just waits
    with second:
        assert scene.holders == 1
    registry.remove()
    scope[0] = "one"
    registry.remove()
