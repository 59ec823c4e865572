"""Thousands of cancels at random moments, and one at each await in turn."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from dlock_core import AsyncLock, AsyncLockProvider, LockLost, LockLostError, LockTimeoutError
from dlock_core.sessions.drivers import CANCEL_SECONDS
from tests.contract.house import House, until
from tests.pace import promptly
from tests.servers.proxy import Proxy

DRIVERS = {"postgresql-asyncpg", "postgresql-psycopg-async", "mariadb-aiomysql", "mysql-asyncmy"}
pytestmark = pytest.mark.rows(lambda row: row.name in DRIVERS)

CANCELS = 1250  # on each of four drivers
CROWD = 25
KEYS = 3
SETTLED = 2.0
# More awaits than any way through an acquisition has.
MANY = 400

Make = Callable[..., AsyncLock]


def nothing_is_left(house: House) -> None:
    """Snapshot, within two seconds, whether anything is held or queued; the sessions are counted by the house."""
    since = time.monotonic()
    until(lambda: house.witness.holders() == house.witness.waiters() == 0, "all to be free")
    assert time.monotonic() - since < SETTLED
    for provider in house.providers:
        until(lambda provider=provider: not provider._coordinator.entries._entries, "the bookkeeping to be empty")  # type: ignore[misc]


class Storm:
    """Tasks that take locks, and are cancelled while they ask, hold or release."""

    def __init__(self, makers: list[Make], seed: int) -> None:
        self._makers = makers
        self._random = random.Random(seed)
        self.cancels = 0

    def _moment(self) -> float:
        """Return a time in which a task gets somewhere, or not."""
        return self._random.choice([0, 0, self._random.uniform(0, 0.004), self._random.uniform(0, 0.03)])

    async def _use(self) -> None:
        maker, key = self._random.choice(self._makers), self._random.randrange(KEYS)
        timeout = self._random.choice([None, 0, 0.003, 5])
        stay = self._moment() / 4
        with suppress(LockTimeoutError):
            async with maker(key, timeout=timeout):
                await asyncio.sleep(stay)

    async def _for_ever(self) -> None:
        while True:
            await self._use()
            await asyncio.sleep(0)

    async def _cancelled(self, times: int) -> None:
        """Cancel a task, and look whether it ends by that."""
        task = asyncio.create_task(self._for_ever())
        await asyncio.sleep(self._moment())
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(self._random.choice([0, 0.0005]))
        with pytest.raises(asyncio.CancelledError):
            await task

    async def _timed_out(self) -> None:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(self._moment()):
                await self._for_ever()
        assert type(caught.value) is TimeoutError

    async def _grouped(self) -> None:
        async def fail() -> None:
            await asyncio.sleep(self._moment())
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._for_ever())
                group.create_task(fail())
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]

    def _one(self) -> Coroutine[Any, Any, None]:
        times = self._random.choice([0, 0, 1, 1, 1, 2])
        self.cancels += max(times, 1)
        if times:
            return self._cancelled(times)
        return self._random.choice([self._timed_out, self._grouped])()

    async def blow(self, cancels: int) -> None:
        """Go on until there were so many cancels."""
        while self.cancels < cancels:
            async with asyncio.TaskGroup() as crowd:
                for _ in range(CROWD):
                    crowd.create_task(self._one())


def test_random_cancels_leave_nothing(house: House) -> None:
    """Single, double, by a task group, by `asyncio.timeout`; no cancel is swallowed, no other error appears."""
    storm = Storm([house.maker(), house.maker(house.new_provider())], seed=20261121)
    house.loop.begin(storm.blow(CANCELS)).result(100)
    nothing_is_left(house)

    async def works() -> None:
        for key in range(KEYS):
            async with house.maker()(key, timeout=5):
                pass

    house.loop.run(works())


class Stepped:
    """Awaits a coroutine, and cancels its task at the n-th await, once or twice in a row."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], at: int, times: int) -> None:
        self._coroutine = coroutine
        self._at = range(at, at + times)
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._coroutine.__await__()
        task = asyncio.current_task()
        assert task is not None
        send: Callable[[], Any] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                future = send()
            except StopIteration:
                return
            self.awaits += 1
            if self.awaits in self._at:
                task.cancel()
            try:
                value = yield future
                send = lambda value=value: steps.send(value)  # type: ignore[misc]  # noqa: E731
            except BaseException as error:
                send = lambda error=error: steps.throw(error)  # type: ignore[misc]  # noqa: E731


async def step_through(use: Callable[[], Coroutine[Any, Any, None]], times: int) -> int:
    """Cancel a use at its first await, its second and so on, until it has no more; return their number."""
    for at in range(1, MANY):
        stepped = Stepped(use(), at, times)

        async def run(stepped: Stepped = stepped) -> None:
            await stepped

        task = asyncio.create_task(run())
        await asyncio.wait([task], timeout=10)
        assert task.done(), f"stuck after its cancel at await {at}"
        if stepped.awaits < at:
            await task
            return at - 1
        assert task.cancelled(), f"the cancel at await {at} was swallowed: {task!r}"
    raise AssertionError("it never ends")


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancel_at_each_await_of_a_free_lock(house: House, times: int) -> None:
    """From the first connection on; single and double."""

    async def use() -> None:
        async with house.maker()("k", timeout=5):
            await asyncio.sleep(0)

    assert house.loop.begin(step_through(use, times)).result(60) > 1
    nothing_is_left(house)


@pytest.mark.parametrize("times", [1, 2])
def test_a_cancel_at_each_await_of_a_wait(house: House, times: int) -> None:
    """Another process holds the lock, and releases it while the wait is under way."""
    other = house.maker(house.new_provider())

    async def use() -> None:
        async with house.maker()("k", timeout=5):
            await asyncio.sleep(0)

    async def contended() -> None:
        holder = other("k", timeout=5)
        await holder.acquire()
        free = asyncio.create_task(_release_later(holder))
        try:
            await use()
        finally:
            await asyncio.shield(free)

    assert house.loop.begin(step_through(contended, times)).result(90) > 3
    until(lambda: house.witness.holders() == house.witness.waiters() == 0, "all to be free")
    nothing_is_left(house)


async def _release_later(lock: AsyncLock) -> None:
    await asyncio.sleep(0.01)
    await lock.release()


def test_an_abandoned_wait_is_never_granted_later(house: House) -> None:
    """Its statement may still stand at the server when the lock becomes free."""
    other = house.maker(house.new_provider())

    async def abandon() -> None:
        async with other("k", timeout=5):
            waiter = asyncio.create_task(house.maker()("k").acquire())
            await asyncio.to_thread(until, lambda: house.witness.waiters() == 1, "the wait")
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter

    for _ in range(10):
        house.loop.run(abandon())
        nothing_is_left(house)


async def _guarded(lock: AsyncLock) -> AsyncIterator[int]:
    async with lock:
        for number in range(3):
            yield number


@pytest.fixture
def generator(house: House) -> Callable[[], AsyncIterator[int]]:
    """What makes generators that hold a lock between their values."""
    return lambda: _guarded(house.maker()("k", timeout=5))


def test_a_generator_that_is_closed_releases(house: House, generator: Callable[[], AsyncIterator[int]]) -> None:
    """GeneratorExit goes through `async with` like any other end."""

    async def close() -> None:
        values: Any = generator()
        assert await anext(values) == 0
        assert house.witness.holders() == 1
        await values.aclose()
        assert house.witness.holders() == 0

    house.loop.run(close())


def test_a_generator_that_is_abandoned_releases(house: House, generator: Callable[[], AsyncIterator[int]]) -> None:
    """The event loop closes it when it is garbage."""

    async def forget() -> None:
        async for number in generator():
            assert number == 0
            break
        gc.collect()

    house.loop.run(forget())
    nothing_is_left(house)


def test_a_generator_that_is_cancelled_releases(house: House, generator: Callable[[], AsyncIterator[int]]) -> None:
    """While its user is at work between two values."""

    async def use(held: asyncio.Event) -> None:
        async for _ in generator():
            held.set()
            await asyncio.sleep(60)

    async def cancel() -> None:
        held = asyncio.Event()
        task = asyncio.create_task(use(held))
        await held.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    house.loop.run(cancel())
    gc.collect()
    nothing_is_left(house)


@pytest.mark.slow
def test_a_cancel_over_a_silent_network_is_given_up_in_time(house: House) -> None:
    """The task goes on at once; the session that waits, with its owner's other lock, is lost ten seconds later."""
    assert house.server is not None
    holder = house.stranger()
    assert holder.acquire("wanted")

    async def scene(url: str, proxy: Proxy) -> tuple[float, float]:
        async with AsyncLockProvider(create_async_engine(url), share_sessions=False) as locks:
            mine, wanted, lost = locks.lock("mine"), locks.lock("wanted"), asyncio.Event()

            async def wait_beside_mine() -> None:
                await mine.acquire()
                await wanted.acquire()

            loop = asyncio.get_running_loop()
            locks.listen(lambda event: loop.call_soon_threadsafe(lost.set) if isinstance(event, LockLost) else None)
            waiting = asyncio.create_task(wait_beside_mine())
            await asyncio.to_thread(until, lambda: house.witness.waiters() == 1)
            proxy.cut()
            since = time.monotonic()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            left = time.monotonic() - since
            await asyncio.wait_for(lost.wait(), 3 * CANCEL_SECONDS)
            known = time.monotonic() - since
            proxy.restore()
            assert mine.lost
            with pytest.raises(LockLostError):
                await mine.release()
        return left, known

    with Proxy(house.server) as proxy:
        left, lost = house.loop.begin(scene(proxy.url(house.row.drivername), proxy)).result(100)
    assert promptly(left, 1)
    assert promptly(lost, CANCEL_SECONDS + 5)
    holder.release()
    until(lambda: house.witness.holders() == house.witness.waiters() == 0, "all to be free")
