"""What ends a hold or a wait in rare ways, with locks in memory, so that a test decides what happens when."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from dlock_core import (
    AsyncLockProvider,
    DeadlockError,
    Lock,
    LockAcquired,
    LockEvent,
    LockLost,
    LockLostError,
    LockProvider,
    LockReleased,
    LockStateError,
)
from dlock_core.contrib.prometheus import PrometheusListener
from dlock_core.contrib.testing import MemoryDatabase
from dlock_core.coordination import coordinator, main_thread
from dlock_core.coordination.contexts import BLOCKING
from dlock_core.coordination.coordinator import Coordinator
from dlock_core.coordination.state import Entries, State
from dlock_core.dialects.base import Session
from tests.fault.stepping import interrupted_at

from .fake_server import until
from .people import Person

ENDS = (LockReleased, LockLost)


@pytest.fixture
def database() -> Iterator[MemoryDatabase]:
    """A database in memory, which can take locks away."""
    with MemoryDatabase() as database:
        yield database


@pytest.fixture
def locks(database: MemoryDatabase) -> LockProvider:
    """Locks of that database."""
    return database.provider()


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Locks become garbage here, on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


class TestEnds:
    """Whatever ends a hold is reported once."""

    @pytest.fixture
    def heard(self, locks: LockProvider) -> list[LockEvent]:
        """What a listener heard."""
        heard: list[LockEvent] = []
        locks.listen(heard.append)
        return heard

    @staticmethod
    def gauge(registry: CollectorRegistry) -> float | None:
        labels = {"database": "sqlite", "mode": "exclusive", "key": ""}
        return registry.get_sample_value("dlock_locks_held", labels)

    @pytest.mark.usefixtures("forgetful")
    @pytest.mark.parametrize("way", ["release", "loss", "loss and release", "garbage", "provider", "provider, release"])
    def test_the_gauge_returns_to_zero(self, locks: LockProvider, database: MemoryDatabase, way: str) -> None:
        """And not below, in whatever way the lock ends."""
        registry, heard = CollectorRegistry(), cast("list[LockEvent]", [])
        locks.listen(PrometheusListener(registry))
        locks.listen(heard.append)
        lock: Lock | None = locks.lock("k")
        assert lock is not None
        assert lock.acquire()
        assert self.gauge(registry) == 1
        if way.startswith("loss"):
            database.lose("k")
        elif way.startswith("provider"):
            locks.close()
        elif way == "garbage":
            lock = None
            gc.collect()
        if lock is not None and way.endswith("release"):
            try:
                lock.release()
            except LockLostError:
                assert way != "release"
        until(lambda: self.gauge(registry) == 0)
        assert len([event for event in heard if isinstance(event, ENDS)]) == 1

    def test_a_loss_and_a_release_at_one_time_are_one_end(
        self, locks: LockProvider, heard: list[LockEvent], database: MemoryDatabase
    ) -> None:
        """Two threads find out, and one tells."""
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(2) as pool:
                for _ in range(100):
                    lock = locks.lock("k")
                    lock.acquire()
                    (ticket,) = locks._coordinator.entries.held()
                    lost = pool.submit(locks._coordinator._dead, ticket.session)
                    released = pool.submit(lock.release)
                    lost.result(10)
                    assert released.exception(10) is None or isinstance(released.exception(), LockLostError)
        finally:
            sys.setswitchinterval(0.005)
        until(lambda: len([event for event in heard if isinstance(event, ENDS)]) >= 100)
        assert len([event for event in heard if isinstance(event, ENDS)]) == 100
        assert len([event for event in heard if isinstance(event, LockAcquired)]) == 100
        assert not locks._coordinator.listeners.holds

    def test_a_listener_that_comes_late_hears_no_end_without_a_beginning(self, locks: LockProvider) -> None:
        """A count of what is held would fall below zero."""
        late: list[LockEvent] = []
        with locks.lock("k"):
            locks.listen(late.append)
        assert late == []


def use(locks: LockProvider) -> None:
    """Take a lock and give it back."""
    lock = locks.lock("k")
    lock.acquire()
    lock.release()


class TestOwners:
    """An owner that would wait for itself is refused, and no other."""

    def test_a_blocking_wait_for_a_task_of_the_main_thread_is_refused(self, locks: LockProvider) -> None:
        """The task is in front in the queue, and the wait would stop its event loop."""
        assert threading.current_thread() is threading.main_thread()
        holder = locks.lock("k")

        async def main() -> None:
            task = asyncio.create_task(locks.alock("k").acquire(timeout=10))
            while not locks._coordinator.entries._awaited:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            with pytest.raises(DeadlockError):
                locks.lock("k").acquire(timeout=2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        with ThreadPoolExecutor(1) as pool:
            pool.submit(holder.acquire).result(10)
            asyncio.run(main())
            pool.submit(holder.release).result(10)

    def test_a_callback_in_a_helper_thread_is_not_the_main_thread(
        self, locks: LockProvider, database: MemoryDatabase
    ) -> None:
        """It may ask for what the main thread holds: that is another thread's."""
        answers: list[Any] = []

        def ask(_: Lock) -> None:
            try:
                answers.append(locks.lock("held").acquire(timeout=0.1))
            except DeadlockError as error:
                answers.append(error)

        held, lost = locks.lock("held"), locks.lock("lost", on_lost=ask)
        assert held.acquire()
        assert lost.acquire()
        database.lose("lost")
        until(lambda: answers)
        assert answers == [False]
        held.release()
        with pytest.raises(LockLostError):
            lost.release()

    @pytest.mark.usefixtures("forgetful")
    def test_an_owner_that_forgot_a_lock_may_ask_for_it_at_once(self, locks: LockProvider) -> None:
        """The release is under way, by another thread."""
        for _ in range(100):
            locks.lock("k").acquire()
            with locks.lock("k", timeout=10):
                pass

    @pytest.mark.usefixtures("forgetful")
    def test_an_owner_that_a_signal_called_away_may_ask_for_the_lock_at_once(
        self, locks: LockProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long the undoing takes to begin."""
        undo = main_thread.MainThreadCall._undo_once

        def undo_late(call: main_thread.MainThreadCall) -> None:
            time.sleep(0.02)
            undo(call)

        monkeypatch.setattr(main_thread.MainThreadCall, "_undo_once", undo_late)
        monkeypatch.setattr(main_thread, "PARTING", 0)
        moment, hit = 0, True
        while hit:
            moment += 1
            with interrupted_at(moment) as stepper:
                use(locks)
            hit = stepper.hit
            with locks.lock("k", timeout=10):
                pass
        assert moment > 50

    def test_a_wait_that_is_called_off_is_no_wait_in_a_circle(self) -> None:
        """Its owner goes on, and will release what others wait for."""
        entries, ann, ben = Entries(), Person("ann"), Person("ben")
        ann.hold(entries, "x")
        ben.hold(entries, "y")
        called_off = ann.ask(entries, "y")
        called_off.disown()
        assert ben.ask(entries, "x").state is State.QUEUED
        assert ann.ask(entries, "z").state is State.ASKING
        assert entries.leave(called_off) is State.QUEUED


class TestErrors:
    """Which error comes out."""

    @pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), asyncio.CancelledError("mine")], ids=repr)
    def test_a_clean_up_that_fails_does_not_replace_what_led_to_it(
        self, locks: LockProvider, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        """It is a note, and a line in the log."""
        coordinator: Coordinator = locks._coordinator
        ask = coordinator._ask

        def ask_and_be_called_away(*arguments: Any) -> bool:
            assert ask(*arguments)
            (ticket,) = coordinator.entries.held()
            assert ticket.session is not None
            ticket.session.release(ticket.entry.name, shared=False)  # the server does not hold it any more
            raise error

        coordinator._ask = ask_and_be_called_away  # type: ignore[method-assign, assignment]
        lock = locks.lock("k")
        with ThreadPoolExecutor(1) as pool:
            raised = pool.submit(lock._acquire, BLOCKING, 5).exception(10)
        assert raised is error
        assert any("the lock was lost" in note for note in error.__notes__)
        assert "release of key 'k' failed" in caplog.text
        assert not coordinator.entries._entries

    def test_a_lost_lock_says_so_when_it_is_acquired_again(self, locks: LockProvider, database: MemoryDatabase) -> None:
        """It is not held, and what to do is in the message."""
        lock = locks.lock("k")
        lock.acquire()
        database.lose("k")
        until(lambda: lock.lost)
        with pytest.raises(LockStateError, match=r"'k'.*was lost; release\(\) or close\(\) it first"):
            lock.acquire()
        with pytest.raises(LockLostError):
            lock.close()
        assert lock.acquire()
        lock.release()


class SpySession:
    """A session that counts its interruptions."""

    def __init__(self) -> None:
        self.interruptions = 0

    def interrupt(self, waiter: object) -> None:
        self.interruptions += 1


class TestWaits:
    """Waits that end by themselves, are called off, or wait for an answer."""

    def test_a_waiter_that_left_by_itself_is_not_interrupted_later(self, locks: LockProvider) -> None:
        """Its session may be another one's by now."""
        coordinator, person, spy = locks._coordinator, Person("ann"), SpySession()
        ticket = person.ask(coordinator.entries, "k")
        ticket.session = cast("Session", spy)
        coordinator.entries.leave(ticket)
        assert not coordinator.withdraw(ticket)
        assert spy.interruptions == 0

    def test_a_waiter_that_is_called_off_is_interrupted_until_it_is_heard(self, locks: LockProvider) -> None:
        """The session stops this one's wait only, so no other one can be hit."""
        coordinator, person, spy = locks._coordinator, Person("ann"), SpySession()
        ticket = person.ask(coordinator.entries, "k")
        ticket.session = cast("Session", spy)
        assert coordinator.withdraw(ticket)
        assert coordinator.withdraw(ticket)
        assert spy.interruptions == 2

    def test_a_single_try_does_not_wait_for_ever_for_an_answer_on_its_way(
        self, locks: LockProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Should that never come, it answers no."""
        monkeypatch.setattr(coordinator, "ANSWER_SECONDS", 0.05)
        entries = locks._coordinator.entries
        lock = locks.lock("k")
        held = Person("ann").hold(entries, lock._request.name)  # type: ignore[arg-type]
        assert entries.release(held) is State.ENDING
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lock.acquire, timeout=0).result(5) is False
        entries.ended(held)


def many_loops(work: Callable[[], Any], threads: int, times: int) -> list[BaseException | None]:
    """Run work in event loops of many threads at once."""
    with ThreadPoolExecutor(threads) as pool:
        return [future.exception(60) for future in [pool.submit(asyncio.run, work()) for _ in range(times)]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of connections whose loop is closed
def test_loops_that_come_and_go_in_many_threads_share_a_provider() -> None:
    """As under asgiref, or in async views of Flask."""
    locks = AsyncLockProvider("sqlite+aiosqlite://")

    async def use(key: object) -> None:
        async with locks.lock(key, timeout=30):
            await asyncio.sleep(0)

    sys.setswitchinterval(1e-6)
    try:
        assert not any(many_loops(lambda: use(object.__hash__(object())), 8, 200))
    finally:
        sys.setswitchinterval(0.005)
    asyncio.run(locks.close())


def test_a_walk_through_the_sessions_may_meet_new_ones(locks: LockProvider) -> None:
    """The watch does, while a loop comes for the first time."""
    coordinator = locks._coordinator
    coordinator._policy("one")
    policies = iter(coordinator._policies.values())
    next(policies)
    coordinator._policy("two")
    assert list(policies) == []
