"""Holders, waiters, and an end to a holder: as the database itself shows them, on every row."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from inspect import isawaitable
from typing import Any

import pytest

from dlock_core import LockInfo, LockLostError, LockStateError

from .house import AnyProvider, House, until
from .rows import Row


def _shows(row: Row) -> bool:
    """Leave out the stand-ins, which have no views; see tests/statements/test_views.py."""
    return row.server != "oracle" and not row.is_standin


pytestmark = pytest.mark.rows.with_args(_shows)
WITH_ONE_SESSION = pytest.mark.rows(lambda row: row.is_server and row.share_sessions and _shows(row))
SEEN_WAITING = pytest.mark.rows(lambda row: not row.in_memory and _shows(row))
WITH_SHARED = pytest.mark.rows(lambda row: row.shared and _shows(row))
KNOWN_SINCE = pytest.mark.rows(lambda row: not row.is_server)


@pytest.fixture(autouse=True)
def _release(house: House) -> Iterator[None]:
    """Let all release at the end."""
    yield
    for person in house.persons:
        while any(lock.held for lock in person.locks):
            person.release()


def inspect(house: House, key: Any = None, provider: AnyProvider | None = None) -> list[LockInfo]:
    """Ask the house's provider, in its own way."""
    answer = (provider or house.provider).inspect(key)
    found: list[LockInfo] = house.loop.run(answer) if isawaitable(answer) else answer
    return found


def terminate(house: House, info: LockInfo, **options: Any) -> bool:
    """Let the house's provider end a session."""
    answer = house.provider.terminate(info, **options)
    ended: bool = house.loop.run(answer) if isawaitable(answer) else answer
    return ended


def only(found: list[LockInfo]) -> LockInfo:
    """Return the one that there is."""
    assert len(found) == 1, found
    return found[0]


def test_a_held_lock_is_shown_with_its_holder(house: House) -> None:
    """Key, mode, process and machine, reported by the holder's own session."""
    person = house.person(house.new_provider(adapter="tests"))
    person.acquire("nightly-report")
    info = only(inspect(house))
    assert (info.actual_key, info.mode) == (person.locks[0].actual_key, "exclusive")
    assert (info.adapter, info.host, info.pid) == ("tests", platform.node()[:24], os.getpid())
    assert (info.waiters, info.other_locks) == ((), 0)


def test_a_lock_of_another_process_is_shown_with_its_key_when_it_is_asked_for(house: House) -> None:
    """The key is hashed on the way, so a stranger needs to know it on PostgreSQL."""
    house.stranger().acquire("nightly-report")
    assert only(inspect(house, "nightly-report")).key == "nightly-report"
    assert inspect(house, "another") == []


def test_the_keys_of_this_provider_are_readable(house: House) -> None:
    """Whatever the server makes of them."""
    house.person().acquire(("orders", 42))
    assert only(inspect(house)).key == "orders:42"


def test_no_locks_are_an_empty_list(house: House) -> None:
    """Not an error, as everything that would hide them is."""
    assert inspect(house) == []
    assert inspect(house, "nightly-report") == []


@SEEN_WAITING
def test_a_waiter_is_shown_with_the_lock(house: House) -> None:
    """In the order of the server's queue, and with the key that the waiter's session tells."""
    house.person().acquire("nightly-report")
    waiting = house.stranger().begin("nightly-report", timeout=30)
    until(lambda: only(inspect(house)).waiters, "the waiter to be seen")
    info = only(inspect(house))
    waiter = info.waiters[0]
    assert (info.key, len(info.waiters)) == ("nightly-report", 1)
    assert (waiter.pid, waiter.mode) == (os.getpid(), "exclusive")
    assert waiter.since is not None
    assert abs(datetime.now(UTC) - waiter.since) < timedelta(seconds=30)
    house.persons[0].release()
    assert waiting.result(10)


@WITH_SHARED
def test_each_reader_is_shown(house: House) -> None:
    """Two sessions, one lock."""
    house.person().acquire("prices", shared=True)
    house.stranger().acquire("prices", shared=True)
    assert [info.mode for info in inspect(house, "prices")] == ["shared", "shared"]


def test_looking_works_while_every_session_is_in_use(house: House) -> None:
    """It has a connection of its own, and touches none that holds or waits."""
    holders = house.stranger()
    for key in ("a", "b", "c"):
        holders.acquire(key)
    narrow = house.new_provider(max_sessions=2)
    waiters = [house.person(narrow) for _ in range(3)]
    pairs = zip(waiters, ("a", "b", "c"), strict=True)
    waiting = [waiter.begin(key, timeout=30) for waiter, key in pairs]
    assert {info.actual_key for info in inspect(house, provider=narrow)} == {lock.actual_key for lock in holders.locks}
    for _ in range(3):
        holders.release()
    assert all(future.result(10) for future in waiting)


def test_terminating_frees_the_lock_and_its_holder_learns_that_it_is_lost(house: House) -> None:
    """Never a silent loss, also when we take it ourselves."""
    holder = house.stranger()
    holder.acquire("nightly-report")
    assert terminate(house, only(inspect(house, "nightly-report"))) is True
    house.person().acquire("nightly-report", timeout=5)
    with pytest.raises(LockLostError, match="nightly-report"):
        holder.release()


def test_terminating_what_is_free_again_ends_no_session(house: House) -> None:
    """The session lives on, with whatever it holds now."""
    holder = house.person()
    holder.acquire("a")
    info = only(inspect(house, "a"))
    holder.release()
    holder.acquire("b")
    assert terminate(house, info) is False
    assert only(inspect(house, "b")).session == info.session or not house.row.is_server


@WITH_ONE_SESSION
def test_terminating_refuses_to_end_locks_that_were_not_named(house: House) -> None:
    """It names them, and ends them all when it is asked to."""
    holder = house.stranger()
    for key in ("a", "b", "c"):
        holder.acquire(key)
    info = only(inspect(house, "a"))
    assert info.other_locks == 2
    with pytest.raises(LockStateError, match=r"2 more.*whole_session=True"):
        terminate(house, info)
    assert len(inspect(house)) == 3
    assert terminate(house, info, whole_session=True) is True
    assert inspect(house) == []
    for _ in range(3):
        with pytest.raises(LockLostError):
            holder.release()


@KNOWN_SINCE
def test_the_time_of_the_grant_is_shown_where_we_keep_it_ourselves(house: House) -> None:
    """Database servers do not record it."""
    house.person().acquire("nightly-report")
    since = only(inspect(house)).since
    assert since is not None
    assert abs(datetime.now(UTC) - since) < timedelta(seconds=30)


@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
def test_the_age_of_the_session_bounds_that_of_the_lock(house: House) -> None:
    """What PostgreSQL knows in its place."""
    house.person().acquire("nightly-report")
    info = only(inspect(house))
    assert info.since is None
    assert info.session_since is not None


def test_an_adapter_without_a_name_is_refused(house: House, row: Row) -> None:
    """It has to fit into the names of sessions."""
    with pytest.raises(ValueError, match="adapter='two words'"):
        house.new_provider(adapter="two words")
