"""`lock` and its kin in one process, on every database."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext, override_settings

from dlock_core import (
    DeadlockError,
    Lock,
    LockKeyError,
    LockLostError,
    LockStateError,
    LockTimeoutError,
    UnsupportedError,
)
from dlock_django import alock, atry_lock, is_locked, lock, providers, try_lock
from dlock_django.signals import lock_acquired, lock_conflict, lock_lost, lock_released
from dlock_django.test import assert_locked, assert_not_locked, hold_lock
from tests.conftest import server
from tests.contract.witnesses import PostgreSQLWitness, Witness
from tests.servers import wait_until

from .inside import NAME


@pytest.fixture
def events() -> Iterator[list[tuple[str, Any]]]:
    """What the receivers of signals hear."""
    heard: list[tuple[str, Any]] = []
    signals: dict[str, Signal] = {"acquired": lock_acquired, "conflict": lock_conflict, "released": lock_released}
    receivers = {name: lambda name=name, **about: heard.append((name, about["key"])) for name in signals}
    for name, signal in signals.items():
        signal.connect(receivers[name])
    yield heard
    for name, signal in signals.items():
        signal.disconnect(receivers[name])


def test_a_lock_is_the_server_s_and_ends_with_the_block(alias: str, server_of: Witness) -> None:
    """Nothing stays behind, not even a session while tests run."""
    before = server_of.sessions()
    with lock("k", using=alias) as held:
        assert held.held
        assert server_of.holders() == 1
    assert not held.held
    assert server_of.holders() == 0
    wait_until(lambda: server_of.sessions() == before, "the lock's session to end", 5)


def test_the_second_one_gets_the_conflict(alias: str, events: list[tuple[str, Any]]) -> None:
    """By an error, or by None; a wait ends in time."""
    with hold_lock("k", using=alias):
        with pytest.raises(LockTimeoutError), lock("k", using=alias):
            pytest.fail("two holders")
        with try_lock("k", using=alias, timeout=0.05) as held:
            assert held is None
    with try_lock("k", using=alias) as held:
        assert held is not None
    assert events == [("conflict", "k"), ("conflict", "k"), ("acquired", "k"), ("released", "k")]


def test_the_same_thread_and_another_are_both_refused(alias: str) -> None:
    """Not even one and the same session lends a lock twice."""
    with lock("k", using=alias), ThreadPoolExecutor(1) as pool:
        with try_lock("k", using=alias) as again:
            assert again is None
        with pytest.raises(DeadlockError), lock("k", using=alias, timeout=30):
            pytest.fail("two holders")
        assert pool.submit(_try, alias).result(30) is False


def _try(alias: str) -> bool:
    with try_lock("k", using=alias) as held:
        return held is not None


def test_a_lock_survives_the_end_of_django_s_connection(alias: str, server_of: Witness) -> None:
    """Its session is not Django's."""
    with lock("k", using=alias):
        connections[alias].ensure_connection()
        connections.close_all()
        assert server_of.holders() == 1


def test_a_lock_that_the_server_takes_away_is_an_error(alias: str, server_of: Witness) -> None:
    """At the end of the block at the latest."""
    with pytest.raises(LockLostError), lock("k", using=alias):
        server_of.break_lock()


def test_a_loss_is_reported_at_once(postgresql_alias: str) -> None:
    """To receivers of lock_lost, while the body still runs; an async body is cancelled if it wants to be."""
    asked = PostgreSQLWitness(server("postgresql"))
    heard = threading.Event()

    def hear(*, key: str, using: str, lock: Lock, **_: object) -> None:
        assert (key, using, lock.lost) == ("k", "postgresql", True)
        heard.set()

    async def be_cancelled() -> None:
        async with alock("a", using="postgresql", cancel_on_lost=True):
            asked.break_lock()
            await asyncio.sleep(30)
            pytest.fail("not cancelled")

    lock_lost.connect(hear)
    try:
        with pytest.raises(LockLostError), lock("k", using="postgresql"):
            asked.break_lock()
            assert heard.wait(10)
    finally:
        lock_lost.disconnect(hear)
    with pytest.raises(LockLostError):
        asyncio.run(be_cancelled())
    asked.close()


@pytest.mark.parametrize("noticed", ["in the body", "at the end"])
def test_a_lost_lock_is_not_reported_as_released(
    postgresql_alias: str, events: list[tuple[str, Any]], noticed: str
) -> None:
    """Neither by `lock` nor by `alock`, whenever the loss is noticed; the arguments are those of Celery and Flask."""
    asked = PostgreSQLWitness(server("postgresql"))
    losses: list[dict[str, Any]] = []

    def hear(**about: Any) -> None:
        losses.append(about)

    async def lose() -> None:
        async with alock("a", using="postgresql") as held:
            asked.break_lock()
            await asyncio.to_thread(wait_until, lambda: held.lost or noticed == "at the end", "the loss to be noticed")

    lock_lost.connect(hear)
    try:
        with pytest.raises(LockLostError), lock("k", using="postgresql") as held:
            asked.break_lock()
            wait_until(lambda: held.lost or noticed == "at the end", "the loss to be noticed")
        with pytest.raises(LockLostError):
            asyncio.run(lose())
        wait_until(lambda: noticed == "at the end" or len(losses) == 2, "the signals")
    finally:
        lock_lost.disconnect(hear)
        asked.close()
    assert events == [("acquired", "k"), ("acquired", "a")]
    for about in losses:
        assert about.keys() - {"signal", "sender"} == {"key", "using", "held_for", "lock"}


def test_signals_have_the_arguments_of_celery_and_flask(alias: str) -> None:
    """`key`, and `waited` or `held_for`; besides, where."""
    heard: list[tuple[str, ...]] = []

    def hear(signal: Any, sender: Any, **about: Any) -> None:
        heard.append(tuple(sorted(about)))
        assert (about["key"], about["using"]) == ("k", alias)

    for signal in (lock_acquired, lock_conflict, lock_released):
        signal.connect(hear)
    try:
        with lock("k", using=alias), try_lock("k", using=alias):
            pass
    finally:
        for signal in (lock_acquired, lock_conflict, lock_released):
            signal.disconnect(hear)
    assert heard == [("key", "using", "waited"), ("key", "using", "waited"), ("held_for", "key", "using")]


def test_a_call_can_be_skipped_when_the_key_is_held(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    """Sync and async; it returns None and says so in the log."""

    @lock("orders:{number}", using=alias, on_conflict="skip")
    def ship(number: int) -> int | None:
        return number

    @alock("orders:{number}", using=alias, on_conflict="skip")
    async def aship(number: int) -> int | None:
        return number

    assert (ship(1), asyncio.run(aship(1))) == (1, 1)
    with hold_lock("orders:1", using=alias), caplog.at_level(logging.INFO, "dlock"):
        assert (ship(1), asyncio.run(aship(1)), ship(2)) == (None, None, 2)
    assert len([record for record in caplog.records if "'orders:1': held elsewhere" in record.message]) == 2


def test_what_locks_nothing_is_an_error(default_alias: str) -> None:
    """A condition in place of `with`, a decorator without its key, a block that cannot be skipped."""
    with pytest.raises(LockStateError, match="use `with`"):
        assert try_lock("k")
    with pytest.raises(LockStateError, match="use `with`"):
        assert lock("k")
    bare: Any = lock(lambda: "k")
    for arguments in ((), (5,)):
        with pytest.raises(TypeError):
            bare(*arguments)
    with pytest.raises(ValueError, match="use try_lock"), lock("k", on_conflict="skip"):
        pytest.fail("there is no block to skip")
    with pytest.raises(ValueError, match="give 'raise' or 'skip'"):
        lock("k", on_conflict="abort")  # type: ignore[arg-type]


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_each_grant_has_a_fencing_token_that_grows(alias: str) -> None:
    """Where the database has such."""
    with lock("k", using=alias, fencing=True) as first:
        token = first.fencing_token
    with try_lock("k", using=alias, fencing=True) as second:
        assert second is not None
        assert second.fencing_token > token


def test_a_body_s_own_timeout_is_no_conflict(alias: str, events: list[tuple[str, Any]]) -> None:
    """try_lock does not swallow what its body raises."""
    with pytest.raises(LockTimeoutError, match="inner"), try_lock("outer", using=alias):
        raise LockTimeoutError("inner")
    assert events == [("acquired", "outer"), ("released", "outer")]


def test_a_lock_asks_nothing_on_django_s_connection(alias: str) -> None:
    """So it disturbs neither transactions nor assertNumQueries."""
    connections[alias].ensure_connection()
    with CaptureQueriesContext(connections[alias]) as queries, lock("k", using=alias):
        pass
    assert len(queries) == 0


def test_each_call_of_a_decorated_function_has_its_own_lock(alias: str) -> None:
    """The key comes from the arguments, or from a function of them."""

    @lock("order:{order_id}:{part}", using=alias)
    def ship(order_id: int, part: str = "all") -> bool:
        return is_locked(f"order:{order_id}:all", using=alias)

    @lock(lambda order: ("order", order), using=alias)
    def bill(order: int) -> bool:
        return is_locked(("order", order), using=alias)

    assert (ship(7), ship(order_id=8), bill(7)) == (True, True, True)
    with hold_lock("order:7:all", using=alias):
        assert ship(8)
        with pytest.raises(LockTimeoutError):
            ship(7)


def test_is_locked_agrees_with_the_server(alias: str) -> None:
    """Whichever process holds it."""
    assert_not_locked("k", using=alias)
    with hold_lock("k", using=alias):
        assert_locked("k", using=alias)
        with pytest.raises(AssertionError, match="key 'k' is held on"):
            assert_not_locked("k", using=alias)
    with pytest.raises(AssertionError, match="key 'k' is not held on"):
        assert_locked("k", using=alias)


def test_the_shell_means_the_same_lock(alias: str, inside: Path) -> None:
    """`dlock show` on the same database agrees with `is_locked`."""
    url = f"sqlite:///{inside / 'app.db'}" if alias == "default" else server(alias).url(SHELL[alias], NAME)
    command = [sys.executable, "-m", "dlock_core.cli", "show", "order:7", "--url", url]
    with lock("order:7", using=alias):
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (shown.returncode, is_locked("order:7", using=alias)) == (0, True), shown.stderr
        assert "django" in shown.stdout
    free = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (free.returncode, is_locked("order:7", using=alias)) == (1, False), free.stderr


SHELL = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql", "mysql": "mysql+pymysql"}


@pytest.mark.parametrize("key", [-1, 1, 2**40, -(2**63), "text"])
def test_a_key_is_found_in_pg_locks(postgresql_alias: str, key: int | str) -> None:
    """The two halves of actual_key, negative or not, are classid and objid."""
    asked = PostgreSQLWitness(server("postgresql"))
    with lock(key, using=postgresql_alias) as held:
        assert isinstance(held.actual_key, int)
        found = asked.all(
            "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
        )
        assert [row[0] for row in found] == [held.actual_key]
        assert is_locked(key, using=postgresql_alias)
    asked.close()


def test_two_coroutines_do_not_both_hold(alias: str) -> None:
    """One gets it, the other is refused or waits; both on the same loop."""

    async def both() -> tuple[bool, list[str]]:
        order: list[str] = []
        async with alock("k", using=alias):
            async with atry_lock("k", using=alias) as again:
                refused = again is None
            later = asyncio.create_task(enter(order))
            await asyncio.sleep(0)
            order.append("first out")
        await later
        return refused, order

    async def enter(order: list[str]) -> None:
        async with alock("k", using=alias, timeout=30):
            order.append("second in")

    assert asyncio.run(both()) == (True, ["first out", "second in"])


def test_an_async_conflict_is_reported(alias: str, events: list[tuple[str, Any]]) -> None:
    """By an error, and to receivers."""

    async def come_second() -> None:
        async with alock("k", using=alias):
            pytest.fail("two holders")

    with hold_lock("k", using=alias), pytest.raises(LockTimeoutError):
        asyncio.run(come_second())
    assert events == [("conflict", "k")]


def test_a_cancelled_task_leaves_nothing(alias: str, server_of: Witness) -> None:
    """Whether it waits or holds."""

    async def enter(inside: asyncio.Event) -> None:
        async with alock("k", using=alias, timeout=None):
            inside.set()
            await asyncio.Event().wait()

    async def cancel_both() -> None:
        inside = asyncio.Event()
        tasks = [asyncio.create_task(enter(inside)) for _ in range(2)]
        await asyncio.wait_for(inside.wait(), 30)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(cancel_both())
    wait_until(lambda: server_of.holders() == 0, "what the cancelled tasks had")


def test_an_async_function_is_locked_during_each_call(default_alias: str) -> None:
    """From its arguments, as sync ones."""

    @alock("order:{order_id}")
    async def ship(order_id: int) -> bool:
        return is_locked(f"order:{order_id}")

    assert asyncio.run(ship(7))


def test_a_decorator_on_the_wrong_kind_of_function_is_refused(default_alias: str) -> None:
    """The lock would be free before the body runs."""
    with pytest.raises(UnsupportedError, match="put `alock` over it"):

        @lock("k")
        async def wrong() -> None: ...

    with pytest.raises(UnsupportedError, match="put `lock` over it"):

        @alock("k")
        def wrong_too() -> None: ...

    with pytest.raises(UnsupportedError, match="take the lock inside it"):

        @lock("k")
        def generator() -> Iterator[int]:
            yield 1


def test_a_gap_without_a_value_is_named(default_alias: str) -> None:
    """With what there is, and before the first call."""
    with pytest.raises(LockKeyError, match=r"'order:\{order\}'.*nothing for order; it has order_id"):

        @lock("order:{order}")
        def ship(order_id: int) -> None: ...


def test_one_lock_object_is_one_use(default_alias: str) -> None:
    """A shared one would mix up the locks of two threads; in turn it may be used again."""
    shared = lock("k")
    with shared, pytest.raises(LockStateError, match="in use"), shared:
        pytest.fail("two uses")
    with shared:
        pass


def test_a_lock_that_an_event_loop_refuses_can_be_used_afterwards(default_alias: str) -> None:
    """The refusal is no use of it; outside of the loop it works."""
    once, tried = lock("k"), try_lock("k")

    async def misuse() -> None:
        for block in (once, tried):
            with pytest.raises(SynchronousOnlyOperation), block:
                pytest.fail("blocked the loop")

    asyncio.run(misuse())
    with once:
        assert is_locked("k")
    with tried as held:
        assert held


def test_a_lock_is_on_the_database_that_is_asked_for(default_alias: str) -> None:
    """Each has its own, and DLOCK_DATABASE says which is asked by default."""
    with lock("k"):
        with lock("k", using="second"):
            assert is_locked("k", using="second")
        with override_settings(DLOCK_DATABASE="second"), lock("k"):
            assert is_locked("k")
        assert not is_locked("k", using="second")


def test_settings_are_read_at_use(default_alias: str) -> None:
    """A prefix parts applications; a timeout is the default of all."""
    with hold_lock("k"):
        with override_settings(DLOCK_PREFIX="other"), lock("k"):
            pass
        with override_settings(DLOCK_TIMEOUT=0.2), pytest.raises(LockTimeoutError, match=r"within 0\.2 s"), lock("k"):
            pass


def test_sessions_stay_for_the_next_lock(postgresql_alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as CONN_MAX_AGE says; by default until they are not used for a while; under a runner not at all."""
    asked = PostgreSQLWitness(server("postgresql"))
    before = asked.sessions()

    def lock_leaves(sessions: int, age: int | None) -> None:
        monkeypatch.setitem(connections.settings["postgresql"], "CONN_MAX_AGE", age)
        with lock("k", using="postgresql"):
            pass
        # A server counts a session until its process has ended, a moment after the client has closed it.
        wait_until(lambda: asked.sessions() - before == sessions, f"{sessions} sessions", 5)

    lock_leaves(0, age=0)
    with monkeypatch.context() as outside:
        outside.delattr(mail, "outbox")
        outside.setattr(providers, "LINGER", 1.0)
        lock_leaves(1, age=None)
        lock_leaves(1, age=0)
        lock_leaves(1, age=0)
        wait_until(lambda: asked.sessions() == before, "the unused session to end", 10)
    asked.close()


def test_threads_of_one_process_queue(alias: str) -> None:
    """Never two are inside: each reads a number, lets the others run, and writes the next one."""
    counted, meet = [0], threading.Barrier(8)

    def work() -> None:
        meet.wait(60)
        for _ in range(3):
            with lock("k", using=alias, timeout=60):
                before = counted[0]
                time.sleep(0.002)
                counted[0] = before + 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work) for _ in range(8)]:
            done.result(60)
    assert counted == [24]


def test_in_memory_databases_have_locks_between_threads(inside: Any) -> None:
    """As the tests of a project need them."""
    with lock("k", using="memory"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(_try, "memory").result(30) is False
        assert_locked("k", using="memory")
    assert_not_locked("k", using="memory")
