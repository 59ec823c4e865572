"""`verify`: the server is asked whether this very session holds the lock still."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.util import greenlet_spawn

from dlock_core import AsyncLock, Lock, LockConnectionError, LockLostError, LockStateError
from dlock_core.dialects.sqlite import FileSession
from tests.servers import Proxy

from .house import AnyProvider, House, until
from .persons import AnyLock, Person


def _take_away(provider: AnyProvider, person: Person) -> None:
    """Free a lock at the server, on its own session and behind the provider's back."""
    ticket = person.locks[-1]._ticket
    assert ticket is not None
    session: Any = ticket.session
    if isinstance(session, FileSession):
        assert session._held is not None
        Path(session._held.path).unlink()
    elif hasattr(session, "first"):
        release = provider._coordinator.locks.release  # type: ignore[union-attr]

        def free() -> Any:
            mode = "shared" if ticket.shared else "exclusive"
            return release(session, ticket.entry.name, mode=mode, scope="session", label=None)

        assert person.do(free if session.loop is None else lambda: greenlet_spawn(free))
    else:
        assert session._locks.release(ticket.entry.name, session)


def test_a_lock_that_is_held_is_said_to_be(house: House) -> None:
    """As often as it is asked, beside other locks of the same session, and under a name that must be quoted."""
    person = house.person()
    for key in ("k", 7, -7, ("a", 1), "it's 100% „ö“"):
        assert person.acquire(key)
    for lock in person.locks:
        for _ in range(2):
            assert person.do(lock.verify) is True
            assert lock.held
    for _ in person.locks:
        person.release()


@pytest.mark.rows(lambda row: row.shared)
def test_a_shared_lock_that_is_held_is_said_to_be(house: House) -> None:
    """By each of those that share it."""
    provider = house.new_provider()
    people = [house.person(provider), house.person(provider), house.stranger()]
    for person in people:
        assert person.acquire("k", shared=True)
    for person in people:
        assert person.do(person.locks[0].verify) is True
    for person in people:
        person.release()


@pytest.mark.rows(lambda row: row.api == "sync")
def test_the_main_thread_may_ask(house: House) -> None:
    """By way of its helper, as for all that it does."""
    lock = house.provider.lock("k")
    assert isinstance(lock, Lock)
    with lock:
        assert lock.verify() is True
    with pytest.raises(LockStateError, match=r"'k'.*not held"):
        lock.verify()


def test_a_lock_that_is_not_held_cannot_be_verified(house: House) -> None:
    """Neither before nor after."""
    person = house.person()
    before = house.maker()("k")
    with pytest.raises(LockStateError, match=r"'k'.*not held"):
        person.do(before.verify)
    assert person.acquire("k")
    person.release()
    with pytest.raises(LockStateError, match=r"'k'.*not held"):
        person.do(person.locks[0].verify)


def test_a_lock_that_the_server_has_given_up_is_lost_like_any_other(house: House) -> None:
    """The session lives and nothing else would tell; the lock is lost, its on_lost is called, and release says so."""
    heard: list[AnyLock] = []
    provider = house.new_provider(on_lost=heard.append)
    person = house.person(provider)
    assert person.acquire("k")
    lock = person.locks[0]
    _take_away(provider, person)
    if house.row.is_server:  # SQLite's watch sees it by itself
        assert lock.held
    assert person.do(lock.verify) is False
    assert lock.lost
    assert not lock.held
    until(lambda: heard == [lock], "the loss to be reported")
    assert person.do(lock.verify) is False
    with pytest.raises(LockLostError, match="'k'"):
        person.do(lock.release)
    assert person.acquire("k", timeout=5)
    assert person.do(person.locks[-1].verify) is True
    person.release()
    assert heard == [lock]


@pytest.mark.rows(lambda row: row.is_server)
def test_a_session_that_the_server_ended_is_no_proof(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing shows the end, the question finds it: an error, and the loss is reported."""
    monkeypatch.setattr("dlock_core.sessions.session.duplicate_socket", lambda *_: None)
    heard: list[AnyLock] = []
    person = house.person(house.new_provider(on_lost=heard.append))
    assert person.acquire("k")
    house.witness.break_lock()
    with pytest.raises(LockConnectionError, match=r"'k'.*does not say whether the lock is held"):
        person.do(person.locks[0].verify)
    assert person.locks[0].lost
    until(lambda: heard == person.locks, "the loss to be reported")
    with pytest.raises(LockLostError):
        person.do(person.locks[0].release)


@pytest.fixture
def proxy(house: House) -> Iterator[Proxy]:
    """A network between the house's providers and its server."""
    assert house.server is not None
    with Proxy(house.server) as proxy:
        house.url = proxy.url(house.row.drivername)
        yield proxy


ON_SOME = pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg", "postgresql-asyncpg", "mariadb-aiomysql", "postgresql-asyncpg-own"}
)


@ON_SOME
def test_a_silent_network_is_no_proof(house: House, proxy: Proxy) -> None:
    """The question has a deadline, and then the session is in doubt."""
    person = house.person(house.new_provider(heartbeat=1))
    assert person.acquire("k")
    proxy.cut()
    with pytest.raises(LockConnectionError, match=r"'k'.*has not answered in time"):
        person.do(person.locks[0].verify)
    assert person.locks[0].lost
    proxy.restore()
    with pytest.raises(LockLostError):
        person.do(person.locks[0].release)


@pytest.mark.rows(lambda row: row.name in {"postgresql-asyncpg", "mariadb-aiomysql", "postgresql-asyncpg-own"})
def test_a_task_that_is_cancelled_while_it_asks_loses_nothing(house: House, proxy: Proxy) -> None:
    """Nor do those whose locks are on the same session; what follows waits for the answer."""
    person = house.person(house.new_provider())
    for key in ("a", "b"):
        assert person.acquire(key)
    first, second = person.locks
    assert isinstance(first, AsyncLock)

    async def be_cancelled() -> None:
        await asyncio.wait_for(first.verify(), 0.3)

    proxy.cut()
    with pytest.raises(TimeoutError):
        person.do(be_cancelled)
    proxy.restore()
    assert person.do(first.verify) is True
    assert person.do(second.verify) is True
    person.release()
    person.release()


@pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg", "postgresql-asyncpg", "mariadb-aiomysql", "mysql-pymysql-alock"}
)
def test_many_ask_at_once_on_one_session(house: House) -> None:
    """Each in its turn, among those that take locks and give them back."""
    provider = house.new_provider()
    people = [house.person(provider) for _ in range(8)]
    for number, person in enumerate(people):
        assert person.acquire(number)
    for turn in range(10):
        asked = [person.submit(person.locks[0].verify) for person in people[:4]]
        taken = [person.begin(("beside", turn, number)) for number, person in enumerate(people[4:])]
        assert all(one.result(15) for one in asked + taken)
        for person in people[4:]:
            person.release()
    for person in people:
        person.release()
