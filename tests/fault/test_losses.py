"""Losses are reported by one thread, all of them, whatever the callbacks do; bodies are stopped before."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockLostError
from dlock_core.sessions import workers as threads
from tests.contract.house import House, until

MANY = 300
ON_SOME = pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg", "mariadb-pymysql"})


@ON_SOME
def test_three_hundred_losses_are_reported_in_order_by_one_thread(house: House) -> None:
    """A callback takes its time, and no other has a thread of its own to wait for it in."""
    heard: list[tuple[Any, int]] = []
    most = 0

    def on_lost(lock: Any) -> None:
        nonlocal most
        most = max(most, threading.active_count())
        time.sleep(0.002)
        heard.append((lock.key, threading.get_ident()))

    person = house.person(house.new_provider(on_lost=on_lost))
    for number in range(MANY):
        assert person.acquire(number)
    before = threading.active_count()
    house.witness.break_lock()
    until(lambda: len(heard) == MANY, "all to be reported")
    assert [key for key, _ in heard] == list(range(MANY))
    assert len({ident for _, ident in heard}) == 1
    assert most <= before + 3


@ON_SOME
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseException("mine")], ids=repr)
def test_whatever_an_on_lost_raises_all_others_are_called(
    house: House, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """The provider's for the same lock, and those of the other locks; the log names the key."""
    heard: list[Any] = []

    def fail(_: Any) -> None:
        raise error

    person = house.person(house.new_provider(on_lost=lambda lock: heard.append(lock.key)))
    assert person.acquire("first", on_lost=fail)
    assert person.acquire("second")
    with caplog.at_level(logging.ERROR, "dlock"):
        house.witness.break_lock()
        until(lambda: heard == ["first", "second"], "the provider's on_lost for both")
    assert "on_lost for key 'first' failed" in caplog.text


@ON_SOME
def test_a_loss_that_finds_no_thread_is_reported_later(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the next use of the provider that finds one; the lock itself knows at once."""
    heard: list[Any] = []
    provider = house.new_provider(on_lost=lambda lock: heard.append(lock.key))
    person = house.person(provider)
    for number in range(3):
        assert person.acquire(number)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limit:
        limit.setattr(threads, "start_new_thread", refuse)
        house.witness.break_lock()
        until(lambda: all(lock.lost for lock in person.locks), "the loss to be seen")
        until(lambda: provider._coordinator._losses.stuck, "the thread to be refused")
        assert heard == []
    assert person.acquire("another", timeout=5)
    until(lambda: heard == [0, 1, 2], "the losses to be reported")
    person.release()


@ON_SOME
def test_a_loss_that_only_the_release_finds_is_reported_there_where_no_thread_is_to_be_had(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later there may be no session, and so no watch that would try again."""
    heard: list[Any] = []
    person = house.person(house.new_provider(on_lost=lambda lock: heard.append(lock.key)))
    assert person.acquire("k")
    (ticket,) = house.providers[-1]._coordinator.entries.held()
    session: Any = ticket.session
    statement = "SELECT 1 FROM (SELECT pg_advisory_unlock_all()) AS _"
    if house.row.server != "postgresql":
        statement = "SELECT RELEASE_ALL_LOCKS()"
    person.do(lambda: session.first(sa.text(statement)))

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_new_thread", refuse)
    with pytest.raises(LockLostError, match="did not hold it"):
        person.release()
    assert heard == ["k"]


@pytest.mark.rows(lambda row: row.name in {"postgresql-asyncpg", "postgresql-psycopg-alock", "mysql-aiomysql"})
def test_all_bodies_are_cancelled_while_the_first_callback_takes_its_time(house: House) -> None:
    """What is not protected any more stops at once."""
    go_on = threading.Event()
    provider = house.new_provider(on_lost=lambda _: go_on.wait(20))
    maker: Any = house.maker(provider)

    async def body(key: str, holds: asyncio.Event) -> None:
        with pytest.raises(LockLostError):
            async with maker(key, cancel_on_lost=True):
                holds.set()
                await asyncio.sleep(30)

    async def main() -> None:
        events = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.create_task(body(f"key {n}", holds)) for n, holds in enumerate(events)]
        for holds in events:
            await holds.wait()
        await asyncio.to_thread(house.witness.break_lock)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert not go_on.is_set()

    house.loop.run(main())
    go_on.set()
