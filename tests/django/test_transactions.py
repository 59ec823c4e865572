"""Locks and transactions: the next one reads what was committed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from dlock_core import LockStateError, LockTimeoutError, UnsupportedError
from dlock_django import lock, locked_atomic, try_lock, xact_lock
from dlock_django.test import hold_lock
from tests.conftest import server
from tests.contract.witnesses import PostgreSQLWitness, Witness
from tests.servers import wait_until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads, whose connections of Django's are closed again."""
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def asked(postgresql_alias: str) -> Iterator[PostgreSQLWitness]:
    """The PostgreSQL server."""
    found = PostgreSQLWitness(server("postgresql"))
    yield found
    found.close()


def count(alias: str, name: str) -> int:
    """Return what is committed."""
    from shop.models import Stock

    try:
        return int(Stock.objects.using(alias).get(name=name).count)
    finally:
        connections[alias].close()


def test_a_lock_inside_a_transaction_is_refused(alias: str, server_of: Witness) -> None:
    """It would be free before the commit; the message says what to do; nothing is locked."""
    with transaction.atomic(using=alias):
        with (
            pytest.raises(LockStateError, match=r"locked_atomic\(\).*write lock_view\(\) outermost"),
            lock("k", using=alias),
        ):
            pytest.fail("locked")
        with pytest.raises(LockStateError), try_lock("k", using=alias):
            pytest.fail("locked")
        assert server_of.holders() == 0
        with lock("k", using=alias, allow_atomic=True):
            assert server_of.holders() == 1


def test_a_lock_on_another_database_does_not_help_a_transaction_either(alias: str) -> None:
    """It would be free before the commit just the same."""
    with transaction.atomic(using=alias), pytest.raises(LockStateError), lock("k", using="second"):
        pytest.fail("locked")


def test_no_update_is_lost_under_locked_atomic(alias: str, pool: ThreadPoolExecutor) -> None:
    """Eight threads read, think and write: each finds what the one before has committed."""
    from shop.models import Stock

    Stock.objects.using(alias).update_or_create(name="atomic", defaults={"count": 0})

    @locked_atomic("stock:{name}", using=alias, timeout=60)
    def add(name: str) -> None:
        row = Stock.objects.using(alias).get(name=name)
        time.sleep(0.01)
        row.count += 1
        row.save()

    def work() -> None:
        try:
            add("atomic")
        finally:
            connections[alias].close()

    for done in [pool.submit(work) for _ in range(16)]:
        done.result(60)
    assert count(alias, "atomic") == 16


def test_locked_atomic_rolls_back_and_frees(alias: str, server_of: Witness) -> None:
    """An error in the body undoes the transaction, and then the lock is free."""
    from shop.models import Stock

    with pytest.raises(ZeroDivisionError), locked_atomic("k", using=alias):
        Stock.objects.using(alias).create(name="gone")
        assert server_of.holders() == 1
        _ = 1 / 0
    assert server_of.holders() == 0
    assert not Stock.objects.using(alias).filter(name="gone").exists()


def test_locked_atomic_is_not_for_inside_of_a_transaction(alias: str) -> None:
    """Its commit would be none."""
    with transaction.atomic(using=alias), pytest.raises(LockStateError), locked_atomic("k", using=alias):
        pytest.fail("locked")


def test_locked_atomic_can_have_its_rows_elsewhere(default_alias: str) -> None:
    """The lock is on one database, the transaction on another."""
    with locked_atomic("k", using="second", atomic_using="default"):
        assert connections["default"].in_atomic_block
        assert not connections["second"].in_atomic_block


def _hold(held: threading.Event, leave: threading.Event, *, commit: bool) -> None:
    try:
        with transaction.atomic(using="postgresql"):
            xact_lock("k", using="postgresql")
            held.set()
            leave.wait(30)
            if not commit:
                transaction.set_rollback(True, using="postgresql")
    finally:
        connections["postgresql"].close()


@pytest.mark.parametrize("commit", [True, False])
def test_an_xact_lock_ends_with_its_transaction(
    postgresql_alias: str, pool: ThreadPoolExecutor, asked: PostgreSQLWitness, commit: bool
) -> None:
    """By commit or rollback; and it excludes `lock` and other xact locks on the same key."""
    held, leave = threading.Event(), threading.Event()
    holder = pool.submit(_hold, held, leave, commit=commit)
    assert held.wait(30)
    with try_lock("k", using="postgresql") as stranger:
        assert stranger is None
    with transaction.atomic(using="postgresql"):
        for timeout in (0, 0.05):
            with pytest.raises(LockTimeoutError):
                xact_lock("k", using="postgresql", timeout=timeout)
        assert connections["postgresql"].is_usable()  # the transaction has not failed
    waiter = pool.submit(_wait_for_it)
    wait_until(lambda: asked.waiters() == 1, "the waiter at the server")
    leave.set()
    assert (holder.result(30), waiter.result(30)) == (None, "got it")
    assert asked.holders() == 0


def _wait_for_it() -> str:
    try:
        with transaction.atomic(using="postgresql"), connections["postgresql"].cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '7s'")
            xact_lock("k", using="postgresql", timeout=None)
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchone() == ("7s",)  # the caller's own limit is back
        return "got it"
    finally:
        connections["postgresql"].close()


def test_an_xact_lock_is_one_query_of_django_s_own(postgresql_alias: str) -> None:
    """Through its cursor, so that its log and wrappers see it; again in the same transaction is no conflict."""
    with transaction.atomic(using="postgresql"), CaptureQueriesContext(connections["postgresql"]) as queries:
        xact_lock("k", using="postgresql")
        xact_lock("k", using="postgresql")
    assert len(queries) == 2


def test_shared_xact_locks_share(postgresql_alias: str) -> None:
    """Readers beside readers, not beside a writer."""
    with hold_lock("k", using="postgresql", shared=True), transaction.atomic(using="postgresql"):
        xact_lock("k", using="postgresql", shared=True)
        xact_lock("k", using="postgresql", shared=True, timeout=5)
        with pytest.raises(LockTimeoutError):
            xact_lock("k", using="postgresql")


def test_an_xact_lock_needs_a_transaction(postgresql_alias: str) -> None:
    """Without one it would be free at once."""
    with pytest.raises(LockStateError, match=r"inside atomic\(\)"):
        xact_lock("k", using="postgresql")


@pytest.mark.parametrize("alias", ["default", "mariadb", "mysql"], indirect=True)
def test_other_databases_have_no_xact_locks(alias: str) -> None:
    """The message names what does it there."""
    with transaction.atomic(using=alias), pytest.raises(UnsupportedError, match=r"locked_atomic\(\)"):
        xact_lock("k", using=alias)


def test_an_xact_deadlock_is_reported(postgresql_alias: str, pool: ThreadPoolExecutor) -> None:
    """The server finds it, and one of the two gets the error."""
    meet = threading.Barrier(2)

    def work(first: str, second: str) -> str:
        try:
            with transaction.atomic(using="postgresql"):
                xact_lock(first, using="postgresql")
                meet.wait(30)
                xact_lock(second, using="postgresql", timeout=None)
        except Exception as error:
            return type(error).__name__
        finally:
            connections["postgresql"].close()
        return "done"

    both: list[Future[str]] = [pool.submit(work, "a", "b"), pool.submit(work, "b", "a")]
    assert sorted(one.result(30) for one in both) == ["DeadlockError", "done"]
