"""Side by side with sqlalchemy-dlock 0.9 and with `LockProvider`: each excludes the others, on the same keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy_dlock.factory import create_sadlock as create_theirs

from dlock_core import LockProvider

from .scene import Scene

pytestmark = pytest.mark.rows(lambda row: row.is_server)

# MySQL and MariaDB read these alike; other names are hashed by us, and kept by sqlalchemy-dlock.
PLAIN_KEYS = ["billing:user:42", b"export:7", 42, -1]
POSTGRESQL_KEYS = ["Ключ ' 🔑", "", bytes(range(256)), bytearray(b"x"), memoryview(b"y"), 2**63 - 1, "x" * 1000]


@pytest.fixture
def theirs(scene: Scene) -> Iterator[Any]:
    """A connection for locks of sqlalchemy-dlock, in every kind of row a sync one."""
    engine = sa.create_engine(_sync_url(scene))
    with engine.connect() as connection:
        yield lambda key: create_theirs(connection, key)
    engine.dispose()


def _sync_url(scene: Scene) -> str:
    assert scene.house.server is not None
    return scene.house.server.url("postgresql+psycopg" if scene.row.server == "postgresql" else "mysql+pymysql")


@pytest.mark.parametrize("number", range(len(PLAIN_KEYS)))
def test_each_excludes_the_other(scene: Scene, theirs: Any, number: int) -> None:
    """In both directions."""
    key = PLAIN_KEYS[number]
    ours, other = scene.client().lock(key), theirs(key)
    assert ours.actual_key == other.actual_key
    with ours:
        assert not other.acquire(False)
    assert other.acquire(False)
    assert not ours.acquire(False)
    assert not ours.acquire(timeout=0.02)
    other.release()
    with ours:
        assert scene.holders == 1


@pytest.mark.rows(lambda row: row.server == "postgresql")
@pytest.mark.kinds("connection")
@pytest.mark.parametrize("number", range(len(POSTGRESQL_KEYS)))
def test_each_excludes_the_other_on_every_key_of_postgresql(scene: Scene, theirs: Any, number: int) -> None:
    """Whatever sqlalchemy-dlock accepts."""
    key = POSTGRESQL_KEYS[number]
    ours, other = scene.client().lock(key), theirs(key)
    with ours:
        assert not other.acquire(False)
    assert other.acquire(False)
    assert not ours.acquire(False)
    other.release()


@pytest.mark.kinds("connection", "session")
@pytest.mark.parametrize("key", ["billing:user:42", b"export:7", 42, "Ключ"])
def test_a_provider_without_prefix_means_the_same_lock(scene: Scene, key: Any) -> None:
    """So part of a program can move on before the rest."""
    with LockProvider(_sync_url(scene)) as locks:
        ours, other = scene.client().lock(key), locks.lock(key, timeout=0)
        with ours:
            assert not other.acquire()
        with other:
            assert not ours.acquire(False)
            assert not ours.acquire(timeout=0.02)


@pytest.mark.kinds("connection", "session")
@pytest.mark.rows(lambda row: row.server == "postgresql")
def test_a_wait_ends_when_the_other_library_releases(scene: Scene, theirs: Any) -> None:
    """At once, for we wait in the server's own queue."""
    client, other = scene.client(), theirs("k")
    assert other.acquire()
    lock = client.lock("k")
    waiting = client.begin_call(lock.acquire, True, 20)
    scene.until_waiting()
    other.release()
    assert waiting.result(10)
    lock.release()
