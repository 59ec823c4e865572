"""The environment guard: where a lock would protect nothing, none is given."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockProvider, UnsafeEnvironmentError
from tests.contract.house import House, until
from tests.contract.witnesses import PostgreSQLWitness
from tests.servers import PostgreSQL
from tests.servers.required import require

from .pgbouncer import PgBouncer

Pooler = Callable[..., PgBouncer]
postgresql_rows = pytest.mark.rows(lambda row: row.server == "postgresql" and row.share_sessions)
SETTINGS = "SELECT current_setting('application_name'), current_setting('idle_session_timeout')"


CREATE_TOY = "CREATE FUNCTION pg_catalog.pg_try_advisory_xact_lock(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true'"


@pytest.fixture
def pooler(house: House) -> Iterator[Pooler]:
    """What puts a PgBouncer before the house's server, and the house's URL before that."""
    if PgBouncer.installed() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI needs PgBouncer: apt-get install pgbouncer")
        pytest.skip("no PgBouncer on this machine: apt-get install pgbouncer")
    with ExitStack() as stack:

        def start(mode: str, **settings: str) -> PgBouncer:
            assert house.server is not None
            pooler = stack.enter_context(PgBouncer(house.server, mode, **settings))
            house.url = pooler.url(house.row.drivername)
            return pooler

        yield start
        # What the pooler keeps open would be taken for ours.
        for provider in house.providers:
            house.close_provider(provider)


def prepared(house: House) -> dict[str, Any]:
    """Return engine options for a driver that prepares every statement, which no pooler of transactions bears."""
    return {"connect_args": {"statement_cache_size": 0}} if "asyncpg" in house.row.drivername else {}


@postgresql_rows
@pytest.mark.parametrize(
    "settings", [{}, {"default_pool_size": "1"}, {"server_round_robin": "1", "min_pool_size": "2"}]
)
def test_a_pooler_of_transactions_is_refused(house: House, pooler: Pooler, settings: dict[str, str]) -> None:
    """Before anything is set or locked: the next client of its sessions finds them as they were."""
    through = pooler("transaction", **settings)
    person = house.person(house.new_provider(engine_options=prepared(house)))
    with pytest.raises(UnsafeEnvironmentError, match="pooler"):
        person.acquire("k", timeout=1)
    engine = sa.create_engine(through.url("postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        name, timeout = connection.execute(sa.text(SETTINGS)).one()
    engine.dispose()
    assert not name.startswith("dlock")
    assert timeout == "0"
    assert house.witness.holders() == 0


@postgresql_rows
def test_a_pooler_of_sessions_will_do(house: House, pooler: Pooler) -> None:
    """Each client has a server session of its own, and what it leaves is freed."""
    pooler("session", default_pool_size="20")
    first, second = (house.person(house.new_provider(engine_options=prepared(house))) for _ in range(2))
    assert first.acquire("k")
    assert not second.acquire("k", timeout=0)
    waiting = second.begin("k", timeout=10)
    until(lambda: house.witness.waiters() == 1)
    first.release()
    assert waiting.result(10)
    second.release()
    until(lambda: house.witness.holders() == 0)


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg2", "postgresql-psycopg-alock"})
def test_a_wait_behind_a_pooler_of_sessions_is_cancelled(house: House, pooler: Pooler) -> None:
    """The pooler tells a driver another number of its session than the server does."""
    pooler("session", default_pool_size="20")
    provider = house.new_provider()
    assert isinstance(provider, LockProvider)
    holder, wanted = house.person(house.new_provider()), provider.alock("k")
    assert holder.acquire("k")

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await wanted.acquire()

    asyncio.run(leave())
    until(lambda: house.witness.waiters() == 0, "the wait to end at the server")
    holder.release()


@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
def test_a_pooler_that_keeps_what_its_clients_leave_is_refused(house: House, pooler: Pooler) -> None:
    """A process that dies would leave its locks behind indefinitely."""
    pooler("session", default_pool_size="20", server_reset_query="")
    person = house.person(house.new_provider())
    with pytest.raises(UnsafeEnvironmentError, match="server_reset_query"):
        person.acquire("k", timeout=1)
    house.witness.end_idle()


@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
def test_a_pooler_without_room_for_a_probe_is_refused(house: House, pooler: Pooler) -> None:
    """When in doubt, no: and not only when the pooler's own patience ends."""
    pooler("session", default_pool_size="1")
    person = house.person(house.new_provider())
    with pytest.raises(UnsafeEnvironmentError, match="no second session"):
        person.acquire("k", timeout=1)


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "postgresql-asyncpg"})
def test_a_user_that_may_not_lock_learns_which_right_it_lacks(house: House) -> None:
    """Not an error out of the driver's depths."""
    witness = house.witness
    assert isinstance(witness, PostgreSQLWitness)
    assert house.server is not None
    if not house.server.controllable:
        pytest.skip("the server is not ours to set up")
    witness.connection.execute(sa.text("CREATE ROLE nobody_much LOGIN"))
    witness.connection.execute(sa.text("REVOKE EXECUTE ON FUNCTION pg_try_advisory_lock(bigint) FROM PUBLIC"))
    try:
        house.url = house.server.url(house.row.drivername, user="nobody_much")
        with pytest.raises(UnsafeEnvironmentError, match="GRANT EXECUTE"):
            house.person(house.new_provider()).acquire("k", timeout=1)
    finally:
        witness.connection.execute(sa.text("GRANT EXECUTE ON FUNCTION pg_try_advisory_lock(bigint) TO PUBLIC"))
        witness.connection.execute(sa.text("DROP ROLE nobody_much"))


@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
def test_a_look_alike_whose_locks_do_nothing_is_refused(house: House) -> None:
    """It answers every statement as PostgreSQL would, and its table of locks stays empty."""
    witness = house.witness
    assert isinstance(witness, PostgreSQLWitness)
    assert house.server is not None
    if not house.server.controllable:
        pytest.skip("the server is not ours to set up")
    witness.connection.execute(sa.text("ALTER FUNCTION pg_try_advisory_xact_lock(int, int) RENAME TO real_try"))
    try:
        witness.connection.execute(sa.text(CREATE_TOY))
        with pytest.raises(UnsafeEnvironmentError, match="no working advisory locks"):
            house.person(house.new_provider()).acquire("k", timeout=1)
    finally:
        witness.connection.execute(sa.text("DROP FUNCTION IF EXISTS pg_catalog.pg_try_advisory_xact_lock(int, int)"))
        witness.connection.execute(sa.text("ALTER FUNCTION real_try(int, int) RENAME TO pg_try_advisory_xact_lock"))


@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
def test_the_probes_are_made_once_for_each_provider(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further sessions are only asked what they are."""
    probes: list[object] = []
    monkeypatch.setattr("dlock_core.dialects.postgresql.check_locks", probes.append)
    provider, holder = house.new_provider(), house.stranger()
    assert isinstance(provider, LockProvider)
    assert holder.acquire("k")
    probes.clear()
    with provider.lock("other"):
        assert not provider.lock("k").acquire(timeout=0.01)
    assert len(probes) == 1
    holder.release()


def test_a_standby_is_refused_until_it_is_promoted() -> None:
    """A lock there excludes no session on the primary; after the failover the same provider takes its next lock."""
    with require(PostgreSQL.find())() as server:
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        locks = LockProvider(server.url("postgresql+psycopg2"))
        with pytest.raises(UnsafeEnvironmentError, match="is a standby"):
            locks.lock("k").acquire(timeout=0)
        with server.connect() as connection:
            connection.execute(sa.text("SELECT pg_promote()"))
        with locks.lock("k", timeout=5):
            pass
        locks.close()
