"""What the manager does between the bookkeeping and the server, in moments that no real server can be asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dlock_core import AsyncLockProvider, LockLostError, LockProvider
from dlock_core.manager import Manager
from dlock_core.tickets import Ticket
from dlock_core.timeouts import Deadline

from .fake_server import until


@pytest.fixture
def locks() -> Iterator[LockProvider]:
    """Locks of a database in memory."""
    with LockProvider("sqlite://") as locks:
        yield locks


def test_one_whose_lock_is_lost_before_he_wakes_up_is_told_like_any_holder(locks: LockProvider) -> None:
    """He may wait for ever, so a plain no would be wrong; whoever loses a lock hears it at the release."""
    manager: Manager = locks._manager
    first, second = locks.lock("k"), locks.lock("k")
    queue = manager._queue

    def wake_up_late(ticket: Ticket, deadline: Deadline) -> bool:
        woken = queue(ticket, deadline)
        if ticket.latch is not None:
            assert ticket.session is not None
            assert manager.entries.lose(ticket.session) == [ticket]
        return woken

    manager._queue = wake_up_late  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        assert pool.submit(first.acquire).result(10)
        first.disown()  # the pool may give its taker's thread to the next
        waiting = pool.submit(second.acquire)
        until(lambda: manager.entries._awaited)
        first.release()
        assert waiting.result(10)
    assert second.lost
    with pytest.raises(LockLostError):
        second.release()


def test_one_who_leaves_as_he_is_granted_costs_the_next_nothing(locks: LockProvider) -> None:
    """His lock has been handed on by the time that his own thread looks: the session is not his to end."""
    manager: Manager = locks._manager
    granted, handed_on = threading.Event(), threading.Event()
    results: dict[str, Any] = {}

    async def main() -> None:
        first, second = locks.alock("k"), locks.alock("k")
        lender: Any = manager._lenders[None]
        lender._granted = pause_after_grant
        leaver = asyncio.create_task(first.acquire())
        await asyncio.to_thread(granted.wait, 10)
        lender._granted = manager.entries.granted
        next_one = asyncio.create_task(second.acquire())
        while not manager.entries._awaited:  # noqa: ASYNC110
            await asyncio.sleep(0)
        leaver.cancel()
        results["second"] = await next_one
        handed_on.set()
        await asyncio.to_thread(until, lambda: len(manager.workers._idle) > 0)
        results["lost"] = second.lost
        await second.release()

    def pause_after_grant(ticket: Ticket, session: Any) -> bool:
        answer = manager.entries.granted(ticket, session)
        granted.set()
        handed_on.wait(10)
        return answer

    async def warm_up() -> None:
        async with locks.alock("other"):
            pass

    manager.entries._turn_seconds = 60
    asyncio.run(warm_up())
    asyncio.run(main())
    assert results == {"second": True, "lost": False}


def test_a_lock_held_in_a_closed_loop_is_free_for_the_next_loop() -> None:
    """Its session is ended with the others of that loop, so nobody holds it any more."""
    locks = AsyncLockProvider("sqlite+aiosqlite://")
    left_behind = locks.lock("k")
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(left_behind.acquire())
    loop.close()

    async def main() -> bool:
        async with locks, locks.lock("k", timeout=5) as lock:
            return lock.held

    assert asyncio.run(main())
    assert left_behind.lost


def test_the_release_of_a_lost_lock_settles_with_its_lender(locks: LockProvider) -> None:
    """Where each owner has a session, he would be taken for a holder for ever."""
    manager: Manager = locks._manager
    settled = []

    class Lender:
        def settle(self, ticket: Ticket, *, reusable: bool) -> None:
            settled.append((ticket, reusable))

    lock = locks.lock("k")
    lock.acquire()
    (ticket,) = manager.entries.held()
    assert ticket.session is not None
    manager.entries.lose(ticket.session)
    ticket.home = Lender()
    with pytest.raises(LockLostError):
        lock.release()
    assert settled == [(ticket, True)]
