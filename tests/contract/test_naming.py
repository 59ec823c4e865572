"""Locks that are held for longer than a second are named on PostgreSQL, which knows them by a number only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from dlock_core.cli.group import dlock
from dlock_core.keys import dump_key, int64

from .house import House, until
from .test_inspection import inspect
from .witnesses import PostgreSQLWitness

pytestmark = pytest.mark.rows(lambda row: row.server == "postgresql" and row.share_sessions)
# The constants in it are not kept.
ASKED = "SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%to_regclass%'"


@pytest.fixture
def witness(house: House) -> PostgreSQLWitness:
    """The witness, which can run statements."""
    assert isinstance(house.witness, PostgreSQLWitness)
    return house.witness


@pytest.fixture
def table(house: House) -> Iterator[None]:
    """The table that `dlock init` makes."""
    assert house.server is not None
    url = house.server.url("postgresql+psycopg")
    assert "dlock_names made" in CliRunner().invoke(dlock, ["init", url], catch_exceptions=False).output
    yield
    engine = sa.create_engine(url)
    for name in ("dlock_fences", "dlock_names"):
        sa.Table(name, sa.MetaData()).drop(engine)
    engine.dispose()


def stranger_sees(house: House) -> set[str | None]:
    """Return the keys that another process would be shown."""
    return {info.key for info in inspect(house, provider=house.new_provider())}


def listed(house: House) -> set[str | None]:
    """Return the keys that `dlock list` prints."""
    assert house.server is not None
    url = house.server.url("postgresql+psycopg")
    found = CliRunner().invoke(dlock, ["list", "--url", url, "--json"], catch_exceptions=False)
    return {info["key"] for info in json.loads(found.stdout)}


@pytest.mark.parametrize("prefix", ["", "shop"])
def test_the_only_lock_of_a_process_is_named_in_the_list_after_two_seconds(
    house: House, witness: PostgreSQLWitness, prefix: str
) -> None:
    """By its session's name, for which nothing needs to be set up; the release takes the name away."""
    person = house.person(house.new_provider(prefix=prefix))
    person.acquire(("Zürich", 42))
    assert listed(house) == {None}
    until(lambda: listed(house) == {f"{prefix}:Zürich:42".removeprefix(":")}, "the lock to be named")
    person.release()
    shown = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%rich%'"
    assert witness.scalar(shown) == 0


@pytest.mark.usefixtures("table")
def test_all_locks_of_a_process_are_named_in_the_list_where_there_is_the_table(house: House) -> None:
    """Which fills itself; keys of each kind."""
    keys = ["a", "b:c", 42, ("orders", 42), b"\xff"]
    for key in keys:
        house.person().acquire(key)
    until(lambda: listed(house) == {"a", "b:c", "42", "orders:42", "\\xff"}, "the locks to be named")
    for person in house.persons:
        person.release()


@pytest.mark.usefixtures("table")
def test_a_name_that_is_not_that_of_the_lock_is_not_shown(house: House, witness: PostgreSQLWitness) -> None:
    """Neither out of the table nor from a session; what is right is."""
    person, other = house.person(), house.person()
    person.acquire("a")
    other.acquire("b")
    run = witness.connection.exec_driver_sql
    for number, text in ((int64("", "a"), dump_key("", "wrong")), (int64("", "b"), "{}")):
        run(f"INSERT INTO dlock_names VALUES ({number}, '{text}', now())")
    assert stranger_sees(house) == {None}
    run(f"UPDATE dlock_names SET key = '{dump_key('', 'a')}' WHERE actual_key = {int64('', 'a')}")
    assert stranger_sees(house) == {"a", None}
    person.release()
    other.release()


def test_a_session_that_says_another_key_is_not_believed(house: House, witness: PostgreSQLWitness) -> None:
    """Whatever it is that calls itself so."""
    run = witness.connection.exec_driver_sql
    run(f"SELECT pg_advisory_lock({int64('', 'a')})")
    try:
        for said, shown in (("b", None), ("a", "a")):
            run(f"SET application_name = 'dlock {said} host:1'")
            assert stranger_sees(house) == {shown}
    finally:
        run(f"SELECT pg_advisory_unlock({int64('', 'a')})")


@pytest.mark.parametrize("options", [{"show_keys": False}, {"heartbeat": None}], ids=str)
@pytest.mark.usefixtures("table")
def test_nothing_is_named_when_that_is_unwanted(
    house: House, witness: PostgreSQLWitness, options: dict[str, Any]
) -> None:
    """`show_keys=False` keeps keys out of the server, and without heartbeats no statement runs by itself."""
    person = house.person(house.new_provider(**options))
    person.acquire("secret")
    time.sleep(3)
    assert stranger_sees(house) == {None}
    assert witness.scalar("SELECT count(*) FROM dlock_names") == 0
    person.release()


@pytest.mark.usefixtures("table")
def test_a_lock_that_is_held_for_less_than_a_second_costs_nothing(house: House, witness: PostgreSQLWitness) -> None:
    """No statement but its own, whatever the watch does meanwhile."""
    person = house.person()
    witness.scalar("SELECT count(pg_stat_statements_reset())")
    end = time.monotonic() + 3
    while time.monotonic() < end:
        person.acquire("k")
        time.sleep(0.3)
        person.release()
    assert witness.scalar(ASKED) == 0


@pytest.mark.usefixtures("table")
def test_a_locked_table_holds_up_no_release_and_loses_no_lock(house: House, witness: PostgreSQLWitness) -> None:
    """The names are written on a session that holds nothing, which gives up by itself."""
    people = [house.person() for _ in range(2)]
    for number, person in enumerate(people):
        person.acquire(f"k{number}")
    transactional = witness.engine.execution_options(isolation_level="READ COMMITTED")
    with transactional.connect() as blocking, blocking.begin():
        blocking.exec_driver_sql("LOCK TABLE dlock_names IN ACCESS EXCLUSIVE MODE")
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'dlock_names'::regclass"
        until(lambda: witness.scalar(waits) == 1, "the write to wait")
        started = time.monotonic()
        people[0].release()
        assert time.monotonic() - started < 1
        until(lambda: witness.scalar(waits) == 0, "the write to give up")
        assert people[1].locks[0].held
    people[1].release()


def test_a_missing_table_is_no_error_in_the_servers_log(house: House, witness: PostgreSQLWitness) -> None:
    """Neither for what writes nor for what looks."""
    witness.scalar("SELECT count(pg_stat_statements_reset())")
    people = [house.person() for _ in range(2)]
    for number, person in enumerate(people):
        person.acquire(f"k{number}")
    assert house.server is not None
    before = house.server.log_text()
    until(lambda: witness.scalar(ASKED) > 0, "the table to be asked for")
    assert stranger_sees(house) == {None}
    assert "dlock_names" not in house.server.log_text().removeprefix(before)
    for person in people:
        person.release()
