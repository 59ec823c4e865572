"""A task that is cancelled while it releases: the lock is free, and its end is reported."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from sqlalchemy.util import await_only

from dlock_core import LockEvent, LockLost, LockReleased
from dlock_core.sessions.session import SqlSession
from tests.contract.house import House, until

pytestmark = pytest.mark.rows(
    lambda row: (
        row.name in {"postgresql-asyncpg", "postgresql-psycopg-async", "postgresql-psycopg-alock", "mariadb-aiomysql"}
    )
)


def test_a_release_that_is_cancelled_is_reported_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that counts what is held counts down."""
    heard: list[LockEvent] = []
    house.provider.listen(heard.append)
    release = SqlSession.release
    begun: list[Any] = []

    def release_slowly(session: SqlSession, *arguments: Any, **options: Any) -> bool:
        begun.append(session)
        if session.loop is None:
            time.sleep(0.1)
        else:
            await_only(asyncio.sleep(0.1))
        return release(session, *arguments, **options)

    async def main() -> None:
        lock: Any = house.maker()("k")
        await lock.acquire()
        monkeypatch.setattr(SqlSession, "release", release_slowly)
        task = asyncio.create_task(lock.release())
        while not begun:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    house.loop.run(main())
    until(lambda: house.witness.holders() == 0, "the lock to be free")
    until(lambda: any(isinstance(event, LockReleased | LockLost) for event in heard), "its end to be reported")
    assert len([event for event in heard if isinstance(event, LockReleased | LockLost)]) == 1
    assert not house.provider._coordinator.listeners.holds
