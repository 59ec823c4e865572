"""Tasks that are cancelled: the cancel goes on unmasked, and nothing is held or queued."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core.sadlock import AsyncSadLock
from tests.contract.house import fail_beside, until

from .clients import Client
from .scene import Scene

pytestmark = pytest.mark.rows(lambda row: row.api == "async")

# MySQL and MariaDB do not notice before the end of SLEEP that their client has gone.
SLEEP = {"postgresql": "SELECT pg_sleep(60)", "mysql": "SELECT SLEEP(1)", "mariadb": "SELECT SLEEP(1)"}


def _run(scene: Scene, coroutine: Any) -> Any:
    assert scene.run.loop is not None
    return scene.run.loop.run(coroutine)


async def _until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(until, condition)


def _lock(client: Client) -> AsyncSadLock[Any]:
    lock = client.lock("k").lock
    assert isinstance(lock, AsyncSadLock)
    return lock


@pytest.mark.parametrize("inside", [False, True])
def test_a_cancel_while_waiting(scene: Scene, inside: bool) -> None:
    """In the user's transaction or outside; the client can be used again after a rollback."""
    holder, client = scene.client(), scene.client()
    if inside:
        scene.insert(client, 1)

    async def cancelled() -> BaseException:
        task = asyncio.create_task(_lock(client).acquire())
        await _until(scene.has_waiter)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return caught.value

    with holder.lock("k"):
        error = _run(scene, cancelled())
        until(lambda: scene.witness.waiters() == 0)
        assert scene.holders == 1
    assert error.__traceback__ is not None  # a living traceback keeps no session alive
    assert scene.holders == 0
    client.rollback()
    with client.lock("k"):
        assert scene.holders == 1


@pytest.mark.kinds("connection")
@pytest.mark.rows(lambda row: row.is_server)
def test_a_cancel_while_waiting_on_a_detached_connection(scene: Scene) -> None:
    """SQLAlchemy only forgets such a connection; we end it."""
    holder, client = scene.client(), scene.client()
    client.run(client.connection.detach)
    kept: list[BaseException] = []

    async def cancelled() -> None:
        task = asyncio.create_task(_lock(client).acquire())
        await _until(lambda: scene.witness.waiters() == 1)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            kept.append(error)

    held = holder.lock("k")
    assert held.acquire()
    _run(scene, cancelled())
    until(lambda: scene.witness.waiters() == 0)
    held.release()
    assert scene.holders == 0
    assert kept


async def _race(holder: Client, client: Client, delay: float) -> None:
    """Release the key at about the moment when its waiter is cancelled."""
    held, wanted = _lock(holder), _lock(client)
    await held.acquire()
    task = asyncio.create_task(wanted.acquire())
    await asyncio.sleep(0.003)
    freeing = asyncio.create_task(held.release())
    await asyncio.sleep(delay)
    task.cancel()
    try:
        granted = await task
    except asyncio.CancelledError:
        granted = False
    await freeing
    assert wanted.locked == granted
    if granted:
        await wanted.release()
    await client.target.rollback()
    await client.target.scalar(sa.text("SELECT 1"))  # a cancelled connect would be SQLAlchemy's, not ours


def test_a_cancel_that_races_with_the_grant(scene: Scene) -> None:
    """Granted or cancelled, never both; the key is free for the next one."""
    holder, client, third = scene.client(), scene.client(), scene.client()
    chance = random.Random(3)

    async def rounds() -> None:
        for _ in range(12):
            await _race(holder, client, chance.uniform(0, 0.003))
            probe = _lock(third)
            assert await probe.acquire(timeout=5)
            await probe.release()

    _run(scene, rounds())


def test_a_cancel_that_races_with_the_release(scene: Scene) -> None:
    """Whatever it hits, the key is free afterwards."""
    client, third = scene.client(), scene.client()
    chance = random.Random(4)

    async def rounds() -> None:
        for _ in range(12):
            lock = _lock(client)
            await lock.acquire()
            task = asyncio.create_task(lock.release())
            await asyncio.sleep(chance.uniform(0, 0.001))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await client.target.rollback()
            probe = _lock(third)
            assert await probe.acquire(timeout=5)
            await probe.release()

    _run(scene, rounds())


def test_a_cancel_in_the_body(scene: Scene) -> None:
    """`asyncio.timeout` works around a lock and a `with` inside."""
    client = scene.client()

    async def body() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03), _lock(client):
                await asyncio.sleep(60)

    _run(scene, body())
    until(lambda: scene.holders == 0, "the lock to be free")  # a wait that the cancel met is undone behind it
    with client.lock("k"):
        assert scene.holders == 1


@pytest.mark.rows(lambda row: row.is_server)
def test_a_cancel_in_a_statement_of_the_body(scene: Scene) -> None:
    """SQLAlchemy throws the connection away; the task ends as cancelled, with no other error."""
    client = scene.client()

    async def body() -> asyncio.CancelledError:
        async def work() -> None:
            async with _lock(client):
                await client.target.execute(sa.text(SLEEP[scene.row.server]))

        task = asyncio.create_task(work())
        await _until(lambda: scene.holders == 1)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert task.cancelled()
        return caught.value

    error = _run(scene, body())
    assert error.__traceback__ is not None
    until(lambda: scene.holders == 0)
    client.rollback()
    with client.lock("k"):
        assert scene.holders == 1


@pytest.mark.rows(lambda row: row.is_server)
@pytest.mark.parametrize("call", ["release", "aclose"])
def test_a_release_in_finally_does_not_mask_a_cancel(scene: Scene, call: str) -> None:
    """As in sqlalchemy-dlock's README: the lock has gone with its connection, which is what was wanted."""
    client = scene.client()

    async def body() -> None:
        lock = _lock(client)

        async def work() -> None:
            await lock.acquire()
            try:
                await client.target.execute(sa.text(SLEEP[scene.row.server]))
            finally:
                await getattr(lock, call)()

        task = asyncio.create_task(work())
        await _until(lambda: scene.holders == 1)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not lock.locked

    _run(scene, body())
    until(lambda: scene.holders == 0)
    client.rollback()


def test_a_task_group_with_a_failing_task(scene: Scene) -> None:
    """Its other tasks, one in the body and the others waiting, end without an error of theirs."""
    clients = [scene.client() for _ in range(4)]

    async def hold(client: Client) -> None:
        async with _lock(client):
            await asyncio.sleep(60)

    _run(scene, fail_beside(*map(hold, clients)))
    until(lambda: scene.holders == 0)
    until(lambda: scene.witness.waiters() == 0)
