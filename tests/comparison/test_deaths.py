"""The holder is killed, frozen, or works for longer than expected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.servers import wait_until

from .conftest import Meet
from .libraries import LEASE, RedisPy
from .people import Server

OVER_SESSIONS = pytest.mark.parametrize("library", ["dlock", "dlock_django", "sqlalchemy-dlock", "django-pglock"])
assert RedisPy.expiry
EXPIRY = RedisPy.expiry


@OVER_SESSIONS
def test_a_killed_holders_lock_goes_to_a_waiter(library: str, meet: Meet, place: Server, name: str) -> None:
    """The server ends the session with the process, and grants the lock to the first in its queue."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    other.begin("acquire", name, None)
    wait_until(lambda: place.waiters() == 1, "the other to wait")
    holder.kill()
    assert other.answer() is True
    assert place.holders() == 1


@pytest.mark.parametrize("library", ["redis-py"])
def test_a_killed_holders_lock_is_held_until_its_expiry(
    library: str, meet: Meet, redis_client: redis.Redis, name: str
) -> None:
    """Redis does not know that the process is dead; by its clock no other has the lock before."""
    holder, other = meet(library), meet(library)
    assert other.ask("use") is None
    began = redis_seconds(redis_client)
    assert holder.ask("acquire", name, 0)
    holder.kill()
    assert other.ask("acquire", name, 30)
    assert redis_seconds(redis_client) - began >= EXPIRY


@pytest.mark.parametrize("library", ["redis-py without expiry"])
def test_a_killed_holders_lock_without_an_expiry_is_held_for_ever(
    library: str, meet: Meet, redis_client: redis.Redis, name: str
) -> None:
    """By default a lock has no expiry: it has to be deleted by hand."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    holder.kill()
    assert other.ask("acquire", name, EXPIRY) is False
    assert redis_client.ttl(name) == -1


@OVER_SESSIONS
def test_work_of_any_length_keeps_its_lock(
    library: str, meet: Meet, name: str, expired: Callable[[float], None]
) -> None:
    """There is no time that had to be guessed."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    expired(2 * EXPIRY)
    assert other.ask("acquire", name, 0) is False


@pytest.mark.parametrize("library", ["dlock with a lease"])
def test_work_longer_than_a_lease_keeps_its_lock(
    library: str, meet: Meet, name: str, expired: Callable[[float], None]
) -> None:
    """The library renews the lease for as long as the process lives."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    expired(2 * LEASE)
    assert other.ask("acquire", name, 0) is False
    assert holder.ask("look") == "held"


@pytest.mark.parametrize("library", ["redis-py"])
def test_work_longer_than_the_expiry_gets_a_second_holder(library: str, meet: Meet, name: str) -> None:
    """While the first still works; it hears of it when it releases."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    assert other.ask("acquire", name, 30)
    assert holder.ask("release") == "LockNotOwnedError"


@OVER_SESSIONS
def test_a_frozen_holder_keeps_its_lock(
    library: str, meet: Meet, place: Server, name: str, expired: Callable[[float], None]
) -> None:
    """The server sees a living session, and no other comes in."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    holder.freeze()
    expired(2 * EXPIRY)
    assert other.ask("acquire", name, 0) is False
    assert place.holders() == 1


@pytest.mark.parametrize("library", ["dlock with a lease", "redis-py"])
def test_a_frozen_holder_with_a_lease_or_an_expiry_loses_its_lock(library: str, meet: Meet, name: str) -> None:
    """A process that never thaws stops no other."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    holder.freeze()
    assert other.ask("acquire", name, 30)


def redis_seconds(client: redis.Redis) -> float:
    """Return the time by Redis' clock."""
    seconds, microseconds = client.time()
    return seconds + microseconds / 1e6
