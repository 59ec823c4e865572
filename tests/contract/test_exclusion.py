"""A lock has one holder, gives way in time, and comes back."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from dlock_core import LockStateError, LockTimeoutError
from tests.pace import promptly

from .house import House, until
from .persons import AnyLock
from .rows import ROWS

EXPECTED_ROWS = {
    "postgresql-psycopg",
    "postgresql-psycopg2",
    "postgresql-psycopg-async",
    "postgresql-asyncpg",
    "postgresql-psycopg-alock",
    "mysql-pymysql",
    "mysql-mysqlclient",
    "mysql-aiomysql",
    "mysql-asyncmy",
    "mysql-pymysql-alock",
    "mariadb-pymysql",
    "mariadb-mysqlclient",
    "mariadb-aiomysql",
    "mariadb-asyncmy",
    "mariadb-pymysql-alock",
    "mssql-pymssql",
    "mssql-pyodbc",
    "mssql-pyodbc-microsoft",
    "mssql-aioodbc",
    "oracle-oracledb",
    "oracle-oracledb-async",
    "oracle-standin",
    "oracle-standin-async",
    "postgresql-psycopg-own",
    "postgresql-asyncpg-own",
    "mariadb-pymysql-alock-own",
    "sqlite-file",
    "sqlite-memory",
    "sqlite-aiosqlite",
}


def test_the_table_has_every_row() -> None:
    """A row that gets lost is missed."""
    assert {row.name for row in ROWS} == EXPECTED_ROWS


def test_a_free_lock_is_granted_and_given_back(house: House) -> None:
    """The server sees one holder while we hold, and none after."""
    person = house.person()
    assert person.acquire("k")
    assert person.locks[0].held
    assert house.witness.holders() == 1
    person.release()
    assert not person.locks[0].held
    assert house.witness.holders() == 0


@pytest.mark.parametrize("own_provider", [False, True], ids=["same-process", "stranger"])
def test_a_held_lock_is_refused_until_it_is_released(house: House, own_provider: bool) -> None:
    """Others get it after the release, not before."""
    holder, other = house.person(), house.stranger() if own_provider else house.person()
    assert holder.acquire("k")
    assert not other.acquire("k", timeout=0)
    assert not other.acquire("k", block=False)
    assert other.acquire("another", timeout=0)
    other.release()
    holder.release()
    assert other.acquire("k", timeout=0)
    other.release()


@pytest.mark.parametrize("own_provider", [False, True], ids=["same-process", "stranger"])
def test_a_waiter_gets_the_lock_when_the_holder_releases(house: House, own_provider: bool) -> None:
    """A wait without limit ends with the release."""
    holder, other = house.person(), house.stranger() if own_provider else house.person()
    assert holder.acquire("k")
    wait = other.begin("k")
    if own_provider and house.row.is_server:
        until(lambda: house.witness.waiters() == 1)
    assert not wait.done()
    holder.release()
    assert wait.result(5) is True
    assert house.witness.holders() == 1
    other.release()


@pytest.mark.parametrize("timeout", [0, 0.0004, 0.05, 0.25, 1.5])
@pytest.mark.parametrize("own_provider", [False, True], ids=["same-process", "stranger"])
def test_a_timeout_is_never_early(house: House, timeout: float, own_provider: bool) -> None:
    """A wait in vain lasts at least its timeout, and ends."""
    holder, other = house.person(), house.stranger() if own_provider else house.person()
    assert holder.acquire("k")
    started = time.monotonic()
    assert not other.acquire("k", timeout=timeout)
    waited = time.monotonic() - started
    whole_seconds = 1 if house.row.server.startswith("oracle") else 0  # it rounds up
    assert waited >= timeout
    assert promptly(waited - timeout, 1 + whole_seconds)
    holder.release()


def test_with_raises_when_the_lock_is_not_free_in_time(house: House) -> None:
    """The error is a TimeoutError that names key and timeout."""
    holder, other = house.person(), house.person()
    assert holder.acquire("orders:42")
    with pytest.raises(LockTimeoutError, match=r"orders:42.*0\.05 s") as caught:
        other.within("orders:42", lambda _: pytest.fail("entered"), timeout=0.05)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.key, caught.value.timeout) == ("orders:42", 0.05)
    assert caught.value.waited is not None
    assert caught.value.waited > 0.05
    holder.release()


def test_with_lets_the_bodys_error_through_and_releases(house: House) -> None:
    """The user sees its own exception, and nothing stays held."""

    def body(_: AnyLock) -> Any:
        assert house.witness.holders() == 1
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        house.person().within("k", body)
    assert house.witness.holders() == 0


def test_one_object_is_one_acquisition_at_a_time(house: House) -> None:
    """Acquiring a held lock and releasing an unheld one are mistakes; using it again is not."""
    person = house.person()
    assert person.acquire("k")
    lock = person.locks[0]
    with pytest.raises(LockStateError, match="'k'"):
        person.do(lambda: lock.acquire(timeout=0))
    assert house.witness.holders() == 1
    person.do(lock.release)
    with pytest.raises(LockStateError, match="'k'"):
        person.do(lock.release)
    person.do(lock.close)
    assert person.do(lock.acquire)
    person.do(lock.close)
    assert house.witness.holders() == 0


def test_another_thread_or_task_may_release(house: House) -> None:
    """The state belongs to the lock object, not to the owner that acquired."""
    holder, helper = house.person(), house.person()
    assert holder.acquire("k")
    helper.do(holder.locks[0].release)
    assert house.witness.holders() == 0


def test_waiters_of_a_process_are_served_in_order(house: House) -> None:
    """First come, first served."""
    served: list[int] = []
    holder, people = house.person(), [house.person() for _ in range(5)]
    assert holder.acquire("k")
    waits = []
    for number, person in enumerate(people):
        waits.append(person.begin_within("k", partial(_note, served, number)))
        until(partial(_queue_is, house, number + 1))
    holder.release()
    for wait in waits:
        wait.result(10)
    assert served == [0, 1, 2, 3, 4]


def _note(served: list[int], number: int, _: AnyLock) -> None:
    served.append(number)


def _queue_is(house: House, length: int) -> bool:
    entries = house.provider._coordinator.entries
    return sum(len(entry.queue) for entry in list(entries._entries.values())) == length


def test_many_keys_do_not_disturb_each_other(house: House) -> None:
    """Thirty keys are held at one time, and each only once."""
    people = [house.person() for _ in range(30)]
    for number, person in enumerate(people):
        assert person.acquire(("key", number), timeout=0)
    assert house.witness.holders() == 30
    stranger = house.stranger()
    assert not any(stranger.acquire(("key", number), timeout=0) for number in range(30))
    for person in people:
        person.release()


@pytest.mark.parametrize("crowd", [50, 200])
def test_a_crowd_never_holds_at_once(house: House, crowd: int) -> None:
    """50 threads or 200 tasks on one key: one at a time, and each gets its turn."""
    if crowd == 200 and house.row.api == "sync":
        crowd = 100
    inside, most, turns = 0, 0, 0

    def body(_: AnyLock) -> None:
        nonlocal inside, most, turns
        inside += 1
        most = max(most, inside)
        turns += 1
        time.sleep(0.0002)  # lets another thread in, if the lock does
        inside -= 1

    people = [house.person() for _ in range(crowd)]
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda person: person.begin_within("k", body), people))
    for wait in waits:
        wait.result(60)
    assert (most, turns) == (1, crowd)


@pytest.mark.rows(lambda row: row.api == "alock")
def test_forty_alock_waiters_do_not_hold_up_a_release(house: House) -> None:
    """Waits run in threads of their own, so a release never queues behind them."""
    holder, people = house.person(), [house.person() for _ in range(40)]
    stranger = house.stranger()
    assert stranger.acquire("k")
    assert holder.acquire("mine")
    waits = [person.begin("k", timeout=20) for person in people]
    others = [house.person().begin(("other", number), timeout=20) for number in range(40)]
    assert all(other.result(20) for other in others)
    started = time.monotonic()
    holder.release()
    assert time.monotonic() - started < 1
    stranger.release()
    for wait, person in zip(waits, people, strict=True):
        assert wait.result(20)
        person.release()
    for person in house.persons:
        for lock in person.locks:
            person.do(lock.close)
