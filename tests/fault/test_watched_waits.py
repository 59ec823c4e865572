"""Locks that were granted after a long wait: as well watched as any other.

A session was once taken off the watch's list while it held nothing, and put back with its next statement: what it
was granted after a wait without a timeout was not watched, and a lease not renewed.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy.orm import Session

from dlock_core import LockLostError
from dlock_core.sadlock import create_sadlock
from dlock_core.sessions.watch import TICK
from tests.contract.house import AnyProvider, House, until
from tests.contract.persons import AnyLock, Person

# Longer than the watch took to forget a session.
LONG_WAIT = 2.5
SOON = 1.0
LEASE = 12
DRIVERS = {
    "postgresql-psycopg",
    "postgresql-psycopg2",
    "postgresql-asyncpg",
    "postgresql-psycopg-async",
    "postgresql-psycopg-alock",
    "mysql-pymysql",
    "mysql-mysqlclient",
    "mysql-aiomysql",
    "mariadb-pymysql",
    "mariadb-mysqlclient",
    "mariadb-aiomysql",
}


def _take_after_a_long_wait(house: House, provider: AnyProvider) -> Person:
    """Let another wait for a lock without a timeout, and get it."""
    person, stranger = house.person(provider), house.stranger()
    assert stranger.acquire("k")
    wait = person.begin("k")
    until(lambda: house.witness.waiters() == 1, "the wait at the server")
    time.sleep(LONG_WAIT)  # what is tested is what happens meanwhile: nothing
    stranger.release()
    assert wait.result(10)
    return person


@pytest.mark.rows(lambda row: row.name in DRIVERS)
@pytest.mark.parametrize("share_sessions", [True, False], ids=["shared", "own"])
def test_a_lock_got_after_a_long_wait_is_lost_at_once(house: House, share_sessions: bool) -> None:
    """A1: nothing was reported, and another one had the lock."""
    heard: list[AnyLock] = []
    person = _take_after_a_long_wait(house, house.new_provider(on_lost=heard.append, share_sessions=share_sessions))
    lock = person.locks[0]
    house.witness.break_lock()
    ended = time.monotonic()
    until(lambda: heard, "the loss to be reported")
    assert time.monotonic() - ended < SOON
    assert heard == [lock]
    assert lock.lost
    with pytest.raises(LockLostError, match="'k'"):
        person.do(lock.release)


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg2", "mysql-mysqlclient", "mariadb-pymysql"})
def test_a_session_s_lock_got_after_a_long_wait_is_lost_at_once(house: House) -> None:
    """The same for `create_sadlock` on a Session, whose locks are on a session of ours."""
    engine, stranger = house.engines[0], house.stranger()
    assert stranger.acquire(7)
    waiter = house.person()

    def wait() -> Any:
        session = Session(engine)
        lock = create_sadlock(session, 7)
        assert lock.acquire()
        return session, lock

    waiting = waiter.submit(wait)
    until(lambda: house.witness.waiters() == 1, "the wait at the server")
    time.sleep(LONG_WAIT)  # what is tested is what happens meanwhile: nothing
    stranger.release()
    session, lock = waiting.result(10)
    with closing(session):
        assert lock.locked
        house.witness.break_lock()
        ended = time.monotonic()
        until(lambda: not lock.locked, "the loss to be noticed")
        assert time.monotonic() - ended < SOON
        with pytest.raises(LockLostError):
            waiter.do(lock.release)


@pytest.mark.slow  # twenty seconds
@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "postgresql-asyncpg", "mariadb-pymysql"})
def test_a_lease_of_a_lock_got_after_a_long_wait_renews_itself(house: House) -> None:
    """A1: the holder's own server ended it after the lease, and nothing was reported."""
    heard: list[AnyLock] = []
    person = _take_after_a_long_wait(house, house.new_provider(on_lost=heard.append, lease=LEASE))
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert person.locks[0].held
        time.sleep(TICK / 10)
    assert house.witness.holders() == 1
    assert heard == []
    person.release()


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "mariadb-aiomysql"})
def test_a_round_of_the_watch_just_after_the_grant_forgets_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: between the server's answer and our count of locks the session looked idle."""
    heard: list[AnyLock] = []
    provider = house.new_provider(on_lost=heard.append)
    watch = provider._coordinator._watch
    dialect = provider._coordinator.locks
    acquire = dialect.acquire  # type: ignore[union-attr]

    def acquire_and_look(*arguments: Any, **options: Any) -> bool:
        granted = acquire(*arguments, **options)
        watch.round()
        return bool(granted)

    monkeypatch.setattr(dialect, "acquire", acquire_and_look)
    person = house.person(provider)
    assert person.acquire("k")
    house.witness.break_lock()
    until(lambda: heard == person.locks, "the loss to be reported")
    with pytest.raises(LockLostError):
        person.do(person.locks[0].release)
