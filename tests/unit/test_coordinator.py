"""What the coordinator does between the bookkeeping and the server, in moments that no real server can be asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from dlock_core import AsyncLockProvider, Lock, LockLostError, LockProvider
from dlock_core.coordination.coordinator import Coordinator
from dlock_core.coordination.policy import Policy
from dlock_core.coordination.state import Ticket

from .fake_server import until


@pytest.fixture
def locks() -> Iterator[LockProvider]:
    """Locks of a database in memory, in turns that no slow machine ends."""
    with LockProvider("sqlite://") as locks:
        locks._coordinator.entries._turn_seconds = 60
        yield locks


def test_one_whose_lock_is_lost_before_it_wakes_up_learns_it_like_any_holder(locks: LockProvider) -> None:
    """It may wait without limit, so a plain no would be wrong; one that loses a lock hears it at the release."""
    coordinator: Coordinator = locks._coordinator
    first, second = locks.lock("k"), locks.lock("k")
    queue = coordinator._queue

    def wake_up_late(ticket: Ticket) -> bool:
        woken = queue(ticket)
        if ticket.latch is not None:
            assert ticket.session is not None
            assert coordinator.entries.lose(ticket.session) == [(ticket, second)]
        return woken

    coordinator._queue = wake_up_late  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        assert pool.submit(first.acquire).result(10)
        first.disown()  # the pool may give its taker's thread to the next
        waiting = pool.submit(second.acquire)
        until(lambda: coordinator.entries._awaited)
        first.release()
        assert waiting.result(10)
    assert second.lost
    with pytest.raises(LockLostError):
        second.release()


def test_one_that_leaves_as_it_is_granted_costs_the_next_nothing(locks: LockProvider) -> None:
    """Its lock has been handed on by the time that its own thread looks: the session is not its to end."""
    coordinator: Coordinator = locks._coordinator
    granted, handed_on = threading.Event(), threading.Event()
    results: dict[str, Any] = {}
    grant = coordinator.entries.granted

    async def main() -> None:
        first, second = locks.alock("k"), locks.alock("k")
        coordinator.entries.granted = pause_after_grant  # type: ignore[method-assign]
        leaver = asyncio.create_task(first.acquire())
        await asyncio.to_thread(granted.wait, 10)
        coordinator.entries.granted = grant  # type: ignore[method-assign]
        next_one = asyncio.create_task(second.acquire())
        while not coordinator.entries._awaited:  # noqa: ASYNC110
            await asyncio.sleep(0)
        leaver.cancel()
        results["second"] = await next_one
        handed_on.set()
        await asyncio.to_thread(until, lambda: len(coordinator.workers._idle) > 0)
        results["lost"] = second.lost
        await second.release()

    def pause_after_grant(ticket: Ticket, session: Any) -> bool:
        answer = grant(ticket, session)
        granted.set()
        handed_on.wait(10)
        return answer

    async def warm_up() -> None:
        async with locks.alock("other"):
            pass

    asyncio.run(warm_up())
    asyncio.run(main())
    assert results == {"second": True, "lost": False}


def test_a_lock_held_in_a_closed_loop_is_free_for_the_next_loop() -> None:
    """Its session is ended with the others of that loop, so it is free again."""
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


class Settling:
    """A policy that notes what it takes back."""

    def __init__(self) -> None:
        self.settled: list[tuple[Ticket, bool]] = []

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        """Take back what a ticket used."""
        self.settled.append((ticket, reusable))


def lost(locks: LockProvider, lock: Lock) -> tuple[Ticket, Settling]:
    """Acquire a lock and lose it; return its ticket, and the policy that will take back what it used."""
    coordinator: Coordinator = locks._coordinator
    lock.acquire()
    (ticket,) = coordinator.entries.held()
    assert ticket.session is not None
    coordinator.entries.lose(ticket.session)
    policy = Settling()
    ticket.policy = cast("Policy", policy)
    return ticket, policy


def test_the_release_of_a_lost_lock_settles_with_its_policy(locks: LockProvider) -> None:
    """Where each owner has a session, it would be taken for a holder indefinitely."""
    lock = locks.lock("k")
    ticket, policy = lost(locks, lock)
    with pytest.raises(LockLostError):
        lock.release()
    assert policy.settled == [(ticket, True)]


def test_an_asker_called_away_whose_lock_is_lost_by_then_settles_with_its_policy(locks: LockProvider) -> None:
    """Otherwise its owner's session would count a user that nothing takes off."""
    ticket, policy = lost(locks, locks.lock("k"))
    locks._coordinator._abandon(ticket, KeyboardInterrupt())
    assert policy.settled == [(ticket, True)]


def test_a_lease_that_is_over_is_a_loss_though_another_thread_is_on_its_way_to_say_so(
    locks: LockProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool has let the session go already. Another reader holds it still, so nothing else would be asked."""
    told: list[Any] = []
    first, second = (locks.lock("k", shared=True, on_lost=told.append) for _ in range(2))
    assert first.acquire()
    first.disown()
    assert second.acquire()
    coordinator: Coordinator = locks._coordinator
    session: Any = coordinator.entries.held()[0].session
    assert [ticket.session for ticket in coordinator.entries.held()] == [session, session]
    monkeypatch.setattr(session, "expired", lambda: True)
    for policy in coordinator._policies.values():
        policy.pool._all.discard(session)
    with pytest.raises(LockLostError):
        first.release()
    until(lambda: told == [first, second])
