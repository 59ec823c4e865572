"""The caller's transactions: a lock neither begins nor ends nor spoils one, and outlives each."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import DeadlockError
from dlock_core.dialects.postgresql import WAIT_ON_CALLERS
from tests.contract.house import until

from .clients import Client, Handle
from .scene import MISTAKE, Scene, SqlError

GRANT_THEN_ERROR = sa.text("""
    SELECT pg_advisory_lock(CAST(:name AS bigint)), set_config('lock_timeout', :milliseconds, true),
           CAST(current_setting('lock_timeout') || 'x' AS integer)
""")
SHARED_THEN_ERROR = sa.text("""
    SELECT pg_advisory_lock_shared(CAST(:name AS bigint)), set_config('lock_timeout', :milliseconds, true),
           CAST(current_setting('lock_timeout') || 'x' AS integer)
""")


def test_a_lock_leaves_no_transaction_behind(scene: Scene) -> None:
    """Taken, refused, waited for in vain and released: the client can begin one of its own."""
    client, other = scene.client(), scene.client()
    with client.lock("k"):
        assert not client.in_transaction
        assert not other.lock("k").acquire(False)
        assert not other.in_transaction
        assert not other.lock("k").acquire(timeout=0.05)
        assert not other.in_transaction
    assert not client.in_transaction
    with client.lock("k"), client.begin():
        scene.insert(client, 1)
    assert scene.rows == [1]


@pytest.mark.rows(lambda row: row.server == "postgresql")
def test_a_holder_is_idle_and_not_idle_in_transaction(scene: Scene) -> None:
    """A held lock holds back no vacuum, and no idle-in-transaction limit takes it away."""
    states = "SELECT state, xact_start FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"
    with scene.client().lock("k"):
        assert scene.witness.all(states) == [("idle", None)]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_lock_outlives_the_transactions_in_its_body(scene: Scene, end: str) -> None:
    """Two after each other, and nothing is released before the end."""
    client = scene.client()
    with client.lock("k") as lock:
        for number in (1, 2):
            scene.insert(client, number)
            getattr(client, end)()
            assert lock.locked
            assert scene.holders == 1
    assert scene.holders == 0
    assert scene.rows == ([1, 2] if end == "commit" else [])


def test_a_lock_outlives_the_transaction_that_it_was_taken_in(scene: Scene) -> None:
    """Commit and rollback free a lock with xact=True only."""
    client = scene.client()
    scene.insert(client, 1)
    with client.lock("k"):
        client.commit()
        assert scene.holders == 1
        scene.insert(client, 2)
    assert scene.holders == 0
    client.commit()
    assert scene.rows == [1, 2]


def test_an_sql_error_in_the_body_is_what_the_user_sees(scene: Scene) -> None:
    """Nothing is held, what was committed is kept, and the client goes on after a rollback."""
    client = scene.client()
    with pytest.raises(SqlError, match="no_such_table") as caught, client.lock("k"):
        scene.insert(client, 1)
        client.commit()
        client.execute(MISTAKE)
    assert not getattr(caught.value, "__notes__", [])
    assert scene.holders == 0
    client.rollback()
    with client.lock("k"):
        scene.insert(client, 2)
        client.commit()
    assert scene.rows == [1, 2]


def test_an_sql_error_inside_begin(scene: Scene) -> None:
    """The user's own error comes out of both blocks, and the client can begin again."""
    client = scene.client()
    with pytest.raises(SqlError, match="no_such_table"), client.begin():
        scene.insert(client, 1)
        with client.lock("k"):
            client.execute(MISTAKE)
    assert scene.holders == 0
    assert scene.rows == []
    with client.begin():
        scene.insert(client, 2)
    assert scene.rows == [2]


def test_an_sql_error_inside_begin_nested_costs_what_is_behind_the_savepoint(scene: Scene) -> None:
    """The rows before it are kept."""
    client = scene.client()
    with client.begin():
        scene.insert(client, 1)
        with pytest.raises(SqlError, match="no_such_table"), client.begin_nested():
            scene.insert(client, 2)
            with client.lock("k"):
                scene.insert(client, 3)
                client.execute(MISTAKE)
        assert scene.holders == 0
        scene.insert(client, 4)
    assert scene.rows == [1, 4]


def test_a_savepoint_inside_the_lock_is_the_users(scene: Scene) -> None:
    """An error that is caught there costs nothing else, and the lock stays until its end."""
    client = scene.client()
    with client.begin():
        with client.lock("k") as lock:
            scene.insert(client, 1)
            with pytest.raises(SqlError), client.begin_nested():
                client.execute(MISTAKE)
            assert lock.locked
            assert scene.holders == 1
            scene.insert(client, 2)
        assert scene.holders == 0
    assert scene.rows == [1, 2]


def test_an_sql_error_that_the_user_catches(scene: Scene) -> None:
    """The block ends well, and the lock is released, although PostgreSQL's transaction has failed."""
    client = scene.client()
    with client.lock("k"), pytest.raises(SqlError):
        client.execute(MISTAKE)
    assert scene.holders == 0
    client.rollback()
    scene.insert(client, 1)
    client.commit()
    assert scene.rows == [1]


def test_a_wait_in_vain_costs_nothing_of_the_users_transaction(scene: Scene) -> None:
    """What was done before it and after it is committed together."""
    holder, client = scene.client(), scene.client()
    with holder.lock("k"), client.begin():
        scene.insert(client, 1)
        assert not client.lock("k").acquire(timeout=0.1)
        assert not client.lock("k").acquire(False)
        with pytest.raises(TimeoutError), client.lock("k", 0.05):
            pytest.fail("entered")
        scene.insert(client, 2)
    assert scene.rows == [1, 2]


def test_a_wait_that_succeeds_inside_the_users_transaction(scene: Scene) -> None:
    """It is no more than a wait."""
    holder, client = scene.client(), scene.client()
    held = holder.lock("k")
    assert held.acquire()
    with client.begin():
        scene.insert(client, 1)
        lock = client.lock("k")
        waiting = client.begin_call(lock.acquire, True, 20)
        scene.until_waiting()
        held.release()
        assert waiting.result(10)
        scene.insert(client, 2)
        lock.release()
    assert scene.rows == [1, 2]


@pytest.mark.rows(lambda row: row.is_server)
def test_a_deadlock_costs_the_victim_its_wait_and_no_more(scene: Scene) -> None:
    """The server, or the queue of this process, ends one of the waits; the victim's locks and rows stay.

    One wait is there before the other begins: MySQL and MariaDB may end both of two that begin at one moment.
    """
    people = [scene.client(scene.new_engine()) for _ in range(2)]
    for number, client in enumerate(people):
        scene.insert(client, number)
    held = [client.lock(f"key{number}") for number, client in enumerate(people)]
    wanted = [client.lock(f"key{1 - number}") for number, client in enumerate(people)]
    assert all(lock.acquire() for lock in held)
    over = threading.Semaphore(0)
    waits = [people[0].begin_call(_wait_and_count, wanted[0], over)]
    scene.until_waiting()
    waits.append(people[1].begin_call(_wait_and_count, wanted[1], over))
    assert over.acquire(timeout=15)
    victim = next(number for number, wait in enumerate(waits) if wait.done() and wait.exception() is not None)
    assert isinstance(waits[victim].exception(), DeadlockError)
    assert held[victim].locked
    held[victim].release()
    assert waits[1 - victim].result(10)
    for lock in (held[1 - victim], wanted[1 - victim]):
        lock.release()
    for client in people:
        client.commit()
    assert scene.rows == [0, 1]


def _wait_and_count(lock: Handle, over: threading.Semaphore) -> bool:
    try:
        return lock.acquire()
    finally:
        over.release()


@pytest.mark.kinds("connection")
@pytest.mark.rows(lambda row: row.server == "postgresql")
class TestPostgreSQL:
    """What only PostgreSQL's transactions and settings can show."""

    def test_the_users_own_lock_timeout_is_put_back(self, scene: Scene) -> None:
        """After a wait that succeeds and one in vain, inside a transaction and outside."""
        holder, client = scene.client(), scene.client()
        client.execute("SET lock_timeout = '7s'")
        client.commit()
        self._wait(holder, client)
        assert client.scalar("SHOW lock_timeout") == "7s"
        client.execute("SET LOCAL lock_timeout = '9s'")
        self._wait(holder, client)
        assert client.scalar("SHOW lock_timeout") == "9s"
        client.commit()
        assert client.scalar("SHOW lock_timeout") == "7s"
        client.execute("RESET lock_timeout")
        client.commit()

    def _wait(self, holder: Client, client: Client) -> None:
        with holder.lock("k"):
            assert not client.lock("k").acquire(timeout=0.02)
        with client.lock("free", 5):
            pass

    def test_the_users_lock_timeout_bounds_no_wait_of_ours(self, scene: Scene) -> None:
        """Without limit is without limit, and 20 s are 20 s."""
        holder, client = scene.client(), scene.client()
        client.execute("SET lock_timeout = '20ms'")
        client.commit()
        for timeout in (None, 20.0):
            held, wanted = holder.lock("k"), client.lock("k")
            assert held.acquire()
            waiting = client.begin_call(wanted.acquire, True, timeout)
            scene.until_waiting()
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
            held.release()
            assert waiting.result(10)
            wanted.release()

    def test_a_lock_in_a_failed_transaction_is_the_users_error(self, scene: Scene) -> None:
        """The caller has to roll back first, and then all goes well."""
        client = scene.client()
        with pytest.raises(SqlError):
            client.execute(MISTAKE)
        for timeout in (0, 1):
            with pytest.raises(sa.exc.DBAPIError, match="aborted"):
                client.lock("k").acquire(timeout=timeout)
        client.rollback()
        with client.lock("k"):
            assert scene.holders == 1

    def test_a_statement_timeout_of_the_users_ends_a_wait_and_leaves_nothing(self, scene: Scene) -> None:
        """It is an error of the database, and costs nothing of the user's transaction."""
        holder, client = scene.client(), scene.client()
        with holder.lock("k"):
            for inside in (False, True):
                client.execute(f"SET {'LOCAL ' if inside else ''}statement_timeout = '50ms'")
                if inside:
                    scene.insert(client, 1)
                else:
                    client.commit()
                with pytest.raises(sa.exc.DBAPIError, match="statement timeout"):
                    client.lock("k").acquire()
                assert scene.holders == 1
            client.commit()
        assert scene.rows == [1]

    @pytest.mark.parametrize("timeout", [0, 1])
    def test_autocommit(self, scene: Scene, timeout: float) -> None:
        """Where there are no transactions there is nothing to spare."""
        engine: Any = scene.engine
        client = scene.client(engine.execution_options(isolation_level="AUTOCOMMIT"))
        other = scene.client()
        with client.lock("k", timeout):
            client.execute("SELECT 1")
            assert not other.lock("k").acquire(timeout=0.02)
        with other.lock("k"):
            assert not client.lock("k").acquire(timeout=0.02)
            client.execute("SELECT 1")
            assert not client.lock("k").acquire(timeout=0.02)

    @pytest.mark.parametrize("inside", [False, True])
    @pytest.mark.parametrize("shared", [False, True])
    def test_a_grant_reported_as_an_error_is_not_kept(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, inside: bool, shared: bool
    ) -> None:
        """The statement takes the lock and then fails, as the server's own clean-up may have it."""
        client = scene.client()
        mode, statement = ("shared", SHARED_THEN_ERROR) if shared else ("exclusive", GRANT_THEN_ERROR)
        monkeypatch.setitem(WAIT_ON_CALLERS, (mode, "session"), statement)
        if inside:
            scene.insert(client, 1)
        with pytest.raises(sa.exc.DBAPIError, match="integer"):
            client.lock("k", shared=shared).acquire()
        assert scene.holders == 0
        client.commit()
        assert scene.rows == [1][: int(inside)]

    def test_a_grant_reported_as_a_timeout_is_not_kept(self, scene: Scene) -> None:
        """The holder releases at the moment when the wait ends: granted or refused, never both."""
        holder, client = scene.client(), scene.client()
        for number in range(60):
            if number % 2:
                scene.insert(client, number)
            self._race(scene, holder.lock("k"), client, number % 30)
            assert scene.holders == 0
        client.rollback()

    def _race(self, scene: Scene, held: Handle, client: Client, delay: int) -> None:
        assert held.acquire()
        wanted = client.lock("k")
        waiting = client.begin_call(wanted.acquire, True, 0.006)
        until(lambda: scene.witness.waiters() == 1 or waiting.done())
        threading.Event().wait(0.0002 * delay)  # aims at the moment
        held.release()
        granted: bool = waiting.result(10)
        assert scene.holders == int(granted)
        wanted.close()
