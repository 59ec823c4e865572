"""A waiter for a held lock is queued by the server, or asks again and again."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tests.servers import wait_until

from .conftest import Meet
from .people import PostgreSQLPlace, Server

TRIES = """
    SELECT query_start FROM pg_stat_activity
    WHERE query LIKE '%pg_try_advisory_lock%' AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@pytest.mark.parametrize(
    ("library", "timeout"),
    [
        ("dlock", 30),
        ("dlock", None),
        ("dlock_django", 30),
        ("django-pglock", 30),
        ("django-pglock", None),
        ("sqlalchemy-dlock", None),
    ],
)
def test_a_waiter_is_queued_by_the_server(
    library: str, timeout: float | None, meet: Meet, place: Server, name: str
) -> None:
    """Its view of waiters shows them, and grants the lock in their order."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, 0)
    other.begin("acquire", name, timeout)
    wait_until(lambda: place.waiters() == 1, "the server to queue the other")
    holder.ask("release")
    assert other.answer() is True


@pytest.mark.parametrize("library", ["sqlalchemy-dlock"])
def test_a_waiter_with_a_timeout_polls_postgresql(
    library: str, meet: Meet, postgresql_place: PostgreSQLPlace, name: str
) -> None:
    """The server gets a new statement with each try, and never shows a waiter."""
    holder, other = meet(library), meet(library)
    assert holder.ask("acquire", name, None)
    other.begin("acquire", name, 30)
    seen: set[object] = set()

    def tried_twice() -> bool:
        assert postgresql_place.waiters() == 0
        seen.update(postgresql_place.all(TRIES))
        return len(seen) >= 2

    wait_until(tried_twice, "two tries")
    assert not other.answered()


@pytest.mark.parametrize("library", ["redis-py"])
def test_a_waiter_polls_redis(library: str, meet: Meet, redis_client: redis.Redis, name: str) -> None:
    """The server gets a command with each try."""
    holder, other = meet(library), meet("redis-py without expiry")
    assert other.ask("acquire", name, 0)
    tries = 0
    client: Any = redis_client
    with client.monitor() as watched:
        holder.begin("acquire", name, 30)
        while tries < 3:
            command = watched.next_command()["command"]
            tries += command.startswith("SET ") and name in command
    assert not holder.answered()
