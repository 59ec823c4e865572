"""Redis and PostgreSQL, and persons that compete there; afterwards nothing of a test is left on either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
import redis

from tests.celery.sites import REDIS_URL, require_redis
from tests.conftest import Forks, server
from tests.servers import wait_until

from .people import Person, PostgreSQLPlace, RedisPlace, Server

Meet = Callable[[str], Person]


@pytest.fixture(scope="session", autouse=True)
def _forks(forks: Forks) -> None:
    """Persons are forked by what outlives the tests."""


@pytest.fixture(scope="session")
def redis_client() -> Iterator[redis.Redis]:
    """A client of Redis; skipped without one, and failed in CI."""
    require_redis()
    with redis.Redis.from_url(REDIS_URL) as client:
        yield client


@pytest.fixture
def name() -> str:
    """A name of the test's own, in its keys and its connections."""
    return f"dlock-comparison-{uuid4().hex[:12]}"


@pytest.fixture
def redis_place(redis_client: redis.Redis, name: str) -> Iterator[RedisPlace]:
    """Redis, without what the test leaves there."""
    place = RedisPlace(redis_client, REDIS_URL, name)
    yield place
    place.clean()


@pytest.fixture
def postgresql_place() -> Iterator[PostgreSQLPlace]:
    """PostgreSQL, where the test's sessions end with it."""
    place = PostgreSQLPlace(server("postgresql"))
    before = place.sessions()
    yield place
    wait_until(lambda: place.sessions() <= before, "the persons' sessions to end")
    place.close()


@pytest.fixture
def place(library: str, request: pytest.FixtureRequest) -> Server:
    """The server where a library keeps its locks."""
    found: Server = request.getfixturevalue("redis_place" if "redis" in library else "postgresql_place")
    return found


@pytest.fixture
def meet(place: Server, name: str) -> Iterator[Meet]:
    """Start a person with a library, at its server."""
    with ExitStack() as leaving:

        def start(library: str) -> Person:
            person = Person(library, place.url, name)
            leaving.callback(person.close)
            return person

        yield start


@pytest.fixture
def expired(redis_client: redis.Redis) -> Iterator[Callable[[float], None]]:
    """Wait until an expiry that begins now is over, by Redis' own clock."""
    mark = f"dlock-comparison-mark-{uuid4().hex}"

    def wait(seconds: float) -> None:
        redis_client.set(mark, "", px=round(seconds * 1000))
        wait_until(lambda: not redis_client.exists(mark), "the expiry to be over")

    yield wait
    redis_client.delete(mark)
