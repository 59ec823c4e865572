"""The connections that locks need, and what becomes of a lock when the application's own connection goes away."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy_dlock.exceptions import SqlAlchemyDLockDatabaseError
from sqlalchemy_dlock.factory import create_sadlock

from dlock_core import LockProvider
from dlock_core import create_sadlock as our_create_sadlock
from tests.servers import wait_until

from .conftest import Meet
from .people import PostgreSQLPlace, Server

THREADS = 20


@pytest.mark.parametrize(
    ("library", "more"),
    [("dlock", 1), ("sqlalchemy-dlock", THREADS), ("django-pglock", THREADS), ("redis-py without expiry", 0)],
)
def test_connections_of_twenty_threads_that_hold_a_lock_each(
    library: str, more: int, meet: Meet, place: Server, name: str
) -> None:
    """What the server counts beside the one that the process had before."""
    holder = meet(library)
    holder.ask("use")
    before = place.sessions()
    assert holder.ask("hold", name, THREADS) == THREADS
    assert place.holders() == THREADS
    assert place.sessions() - before == more


@pytest.mark.parametrize(
    ("library", "more"), [("dlock", 1), ("dlock_django", 1), ("sqlalchemy-dlock", 0), ("django-pglock", 0)]
)
def test_connections_that_a_lock_adds_to_the_applications_own(
    library: str, more: int, meet: Meet, place: Server, name: str
) -> None:
    """None for those that lock on the connection that the application has at that moment."""
    holder = meet(library)
    holder.ask("use")
    before = place.sessions()
    assert holder.ask("acquire", name, 0)
    assert place.sessions() - before == more


@pytest.mark.parametrize("library", ["django-pglock"])
def test_a_lock_on_djangos_connection_is_lost_when_django_closes_it(
    library: str, meet: Meet, place: Server, name: str
) -> None:
    """Nothing is reported, not even at the end of the block."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    holder.ask("close_old_connections")
    assert other.ask("acquire", name, 10)
    assert holder.ask("release") is None


@pytest.mark.parametrize("library", ["dlock_django"])
def test_a_lock_outlives_djangos_connection(library: str, meet: Meet, place: Server, name: str) -> None:
    """Its session is its own."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    holder.ask("use")
    holder.ask("close_old_connections")
    assert other.ask("acquire", name, 0) is False
    assert place.holders() == 1
    assert holder.ask("release") is None


def test_a_commit_gives_the_lock_of_sqlalchemy_dlock_away(postgresql_place: PostgreSQLPlace, name: str) -> None:
    """The connection goes back to the pool with the lock on it, and the next to borrow it holds the lock, too."""
    engine = sa.create_engine(postgresql_place.url)
    with Session(engine) as session, Session(engine) as other:
        lock: Any = create_sadlock(session, name)
        assert lock.acquire()
        session.commit()
        assert lock.locked
        assert create_sadlock(other, name).acquire(False)
    engine.dispose()


def test_a_commit_leaves_the_lock_of_sqlalchemy_dlock_behind(postgresql_place: PostgreSQLPlace, name: str) -> None:
    """When the session goes on with another connection, the lock cannot be released, and stays in the pool."""
    engine = sa.create_engine(postgresql_place.url)
    with Session(engine) as session, Session(engine) as other:
        lock: Any = create_sadlock(session, name)
        assert lock.acquire()
        session.commit()
        other.execute(sa.text("SELECT 1"))  # borrows that connection
        with pytest.raises(SqlAlchemyDLockDatabaseError):
            lock.release()
    assert postgresql_place.holders() == 1
    engine.dispose()
    wait_until(lambda: postgresql_place.holders() == 0, "the pool to end")


def test_a_commit_keeps_the_lock_of_dlock(postgresql_place: PostgreSQLPlace, name: str) -> None:
    """A provider's, and that of the same lines with `create_sadlock` imported from us."""
    engine = sa.create_engine(postgresql_place.url)
    locks = LockProvider(engine)
    with Session(engine) as session, Session(engine) as other:
        lock, ours = our_create_sadlock(session, name), locks.lock(f"{name}-ours")
        assert lock.acquire()
        assert ours.acquire()
        session.commit()
        assert not our_create_sadlock(other, name).acquire(False)
        other.execute(sa.text("SELECT 1"))
        assert postgresql_place.holders() == 2
        lock.release()
        ours.release()
        assert postgresql_place.holders() == 0
    locks.close()
    engine.dispose()


@pytest.mark.parametrize("make", [our_create_sadlock, create_sadlock], ids=["dlock", "sqlalchemy-dlock"])
def test_a_commit_on_a_connection_keeps_the_lock(make: Any, postgresql_place: PostgreSQLPlace, name: str) -> None:
    """A connection stays the same through its transactions, and the lock needs no other."""
    before = postgresql_place.sessions()
    engine = sa.create_engine(postgresql_place.url)
    with engine.connect() as connection, make(connection, name):
        connection.commit()
        assert postgresql_place.holders() == 1
        assert postgresql_place.sessions() == before + 1
    assert postgresql_place.holders() == 0
    engine.dispose()
