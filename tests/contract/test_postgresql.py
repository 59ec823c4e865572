"""What PostgreSQL alone can be asked, or do to us."""

from __future__ import annotations

import os
import platform
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockProvider
from tests.servers import Server

from .house import House, until
from .witnesses import PostgreSQLWitness

pytestmark = pytest.mark.rows(lambda row: row.server == "postgresql" and row.share_sessions)


@pytest.fixture
def witness(house: House) -> PostgreSQLWitness:
    """The witness, which can run statements."""
    assert isinstance(house.witness, PostgreSQLWitness)
    return house.witness


def test_a_holder_is_idle_and_not_idle_in_transaction(house: House, witness: PostgreSQLWitness) -> None:
    """A held lock holds back no vacuum, and no idle-in-transaction limit ends it."""
    person = house.person()
    assert person.acquire("k")
    states = witness.all(
        "SELECT state, xact_start FROM pg_stat_activity JOIN pg_locks USING (pid) WHERE locktype = 'advisory'"
    )
    assert states == [("idle", None)]
    person.release()


def test_the_server_shows_waiters_and_holders_with_sessions_of_their_own(
    house: House, witness: PostgreSQLWitness
) -> None:
    """Such sessions carry suite, key, host and pid; a shared or idle one carries no key."""
    holder, waiter = house.person(house.new_provider(share_sessions=False)), house.person()
    assert holder.acquire("orders:42\n-- forged")
    assert _names(witness) == {"dlock orders:42?-- forged"}
    waiter.begin("orders:42\n-- forged", timeout=20)
    until(lambda: witness.waiters() == 1)
    assert _names(witness) == {"dlock", "dlock orders:42?-- forged"}
    holder.release()
    until(lambda: waiter.locks[0].held)
    assert _names(witness) == {"dlock", "dlock orders:42?-- forged"}
    waiter.release()
    assert _names(witness) == {"dlock"}


def _names(witness: PostgreSQLWitness) -> set[str]:
    """Return the names of our sessions, without host and pid."""
    rows = witness.all("SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'dlock%'")
    whereabouts = f" {platform.node()[:24]}:{os.getpid()}"
    assert all(name.endswith(whereabouts) for (name,) in rows)
    return {name.removesuffix(whereabouts) for (name,) in rows}


def test_keys_are_not_shown_when_that_is_unwanted(house: House, witness: PostgreSQLWitness) -> None:
    """`show_keys=False` keeps them out of the server's views."""
    person = house.person(house.new_provider(show_keys=False, share_sessions=False))
    assert person.acquire("secret")
    assert witness.scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%secret%'") == 0
    person.release()


@pytest.fixture
def strict_role(witness: PostgreSQLWitness) -> Iterator[None]:
    """A role whose limits would end every waiter and every idle holder."""
    limits = {"statement_timeout": "150", "lock_timeout": "150", "idle_in_transaction_session_timeout": "150"}
    exists = "SELECT count(*) FROM pg_settings WHERE name = :name"
    for name in ("idle_session_timeout", "transaction_timeout"):
        if witness.scalar(exists, name=name):
            limits[name] = "150"
    run = witness.connection.exec_driver_sql
    run("CREATE ROLE strict LOGIN")
    for name, value in limits.items():
        run(f"ALTER ROLE strict SET {name} = {value}")
    yield
    run("DROP ROLE strict")


@pytest.mark.usefixtures("strict_role")
def test_limits_of_the_role_do_not_disturb_a_lock(house: House, witness: PostgreSQLWitness) -> None:
    """Statement, lock, transaction and idle limits of 150 ms end neither holder nor waiter."""
    assert house.server is not None
    house.url = house.server.url(house.row.drivername, user="strict")
    holder, waiter = house.stranger(), house.stranger()
    assert holder.acquire("k")
    wait = waiter.begin("k")
    until(lambda: witness.waiters() == 1)
    time.sleep(0.5)  # longer than every limit
    assert not wait.done()
    assert witness.holders() == 1
    holder.release()
    assert wait.result(5)
    waiter.release()
    for provider in house.providers:
        house.close_provider(provider)


@pytest.mark.parametrize("timeout", [1.0, None])
def test_a_wait_is_one_statement(house: House, witness: PostgreSQLWitness, timeout: float | None) -> None:
    """We do not poll: a try, and one statement that waits."""
    holder, waiter = house.stranger(), house.person()
    assert holder.acquire("k")
    assert waiter.acquire("warm")
    waiter.release()
    witness.scalar("SELECT count(pg_stat_statements_reset())")
    wait = waiter.begin("k", timeout=timeout)
    until(lambda: witness.waiters() == 1)
    if timeout is None:
        time.sleep(1)
        holder.release()
        assert wait.result(5)
    else:
        assert not wait.result(5)
    calls = witness.scalar("SELECT sum(calls) FROM pg_stat_statements WHERE query LIKE '%pg_%advisory_lock%'")
    assert calls == (1 if timeout else 2)  # the server does not count a statement that ends in an error
    (holder if timeout else waiter).release()


def test_a_lock_takes_no_slot_of_the_applications_pool(house: House) -> None:
    """Not even while its session opens: the pool of size 1 is in use."""
    provider = house.new_provider(engine_options={"pool_size": 1, "max_overflow": 0, "pool_timeout": 2})
    engine = house.engines[-1]
    person = house.person(provider)
    with _InUse(house, engine):
        assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
        assert person.acquire("k", timeout=5)
        assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    person.release()


class _InUse:
    """Keep one connection of an engine checked out."""

    def __init__(self, house: House, engine: sa.Engine) -> None:
        self._house = house
        self._engine = engine

    def __enter__(self) -> None:
        self._connection = self._call(self._engine.connect)

    def __exit__(self, *_: object) -> None:
        self._call(self._connection.close)

    def _call(self, function: Any) -> Any:
        if not self._engine.dialect.is_async:
            return function()
        return self._house.loop.run(sa.util.greenlet_spawn(function))


@pytest.mark.parametrize("pool", ["NullPool", "StaticPool", "SingletonThreadPool", "AssertionPool", "QueuePool"])
@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
def test_every_kind_of_pool_serves(house: House, pool: str) -> None:
    """The engine's pool, creator and events apply; it is never filled by us."""
    opened: list[object] = []
    engine = sa.create_engine(house.url, poolclass=getattr(sa.pool, pool))
    sa.event.listen(engine, "do_connect", lambda *_: opened.append(1))
    locks = LockProvider(engine)
    with locks.lock("a"), locks.lock("b"):
        assert house.witness.holders() == 2
        assert opened == [1]
    assert engine.pool.status()
    locks.close()
    engine.dispose()


@pytest.mark.parametrize("disturbance", ["timeout", "cancel"])
@pytest.mark.timeout(180)
def test_a_grant_reported_as_an_error_is_never_kept(
    house: House, witness: PostgreSQLWitness, postgresql: Server, disturbance: str
) -> None:
    """The holder releases at the moment when the wait times out or is cancelled; nothing stays held."""
    rounds = 500 if house.row.name == "postgresql-psycopg" else 60
    engine = sa.create_engine(postgresql.url("postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    lock = house.maker()("k")
    chance, waiter = random.Random(1), house.person()
    with engine.connect() as other:
        for _ in range(rounds):
            _one_race(other, witness, waiter, lock, disturbance, chance)
            assert other.scalar(sa.text(f"SELECT pg_try_advisory_lock({lock.actual_key})")), "left held"
            other.scalar(sa.text(f"SELECT pg_advisory_unlock({lock.actual_key})"))
    engine.dispose()


def _one_race(
    other: sa.Connection, witness: PostgreSQLWitness, waiter: Any, lock: Any, disturbance: str, chance: random.Random
) -> None:
    other.scalar(sa.text(f"SELECT pg_advisory_lock({lock.actual_key})"))
    timeout = 0.006 if disturbance == "timeout" else 10
    wait = waiter.submit(lambda: lock.acquire(timeout=timeout))
    until(lambda: witness.waiters() == 1 or wait.done())
    cancel = threading.Thread(target=witness.cancel_waiters)
    if disturbance == "cancel":
        cancel.start()
    time.sleep(chance.uniform(0, 0.0015 if disturbance == "cancel" else 0.006))  # aims at the moment
    other.scalar(sa.text(f"SELECT pg_advisory_unlock({lock.actual_key})"))
    if disturbance == "cancel":
        cancel.join()
    error = wait.exception(10)
    if error is None:
        waiter.do(lock.close)
    else:
        assert isinstance(error, sa.exc.OperationalError | sa.exc.DBAPIError)
