"""A signal handler raises at every moment of an acquisition and a release, one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dlock_core import LockProvider
from tests.contract.house import House, until

from .stepping import interrupted_at

pytestmark = pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg", "postgresql-psycopg2", "mariadb-mysqlclient", "sqlite-file"}
)
# Enough to see that the walks did not end at once.
MANY = 50
MANY_OF_A_WAIT = 15


def in_a_with(provider: LockProvider) -> None:
    """What all write."""
    with provider.lock("k", timeout=5):
        pass


def by_hand(provider: LockProvider) -> None:
    """What is written where `with` does not fit."""
    lock = provider.lock("k")
    if lock.acquire(timeout=5):
        lock.release()


def closed(provider: LockProvider) -> None:
    """What others write."""
    lock = provider.lock("k")
    try:
        lock.acquire(False)
    finally:
        lock.close()


def decorated(provider: LockProvider) -> None:
    """What is shortest."""
    provider.locked("k", timeout=5)(lambda: None)()


def walk(house: House, provider: LockProvider, use: Callable[[LockProvider], None]) -> int:
    """Interrupt `use` at its first moment, its second and so on, until it ends before."""
    moment = 0
    while True:
        moment += 1
        with interrupted_at(moment) as stepper:
            use(provider)
        if not stepper.hit:
            return moment
        until(lambda: house.witness.holders() == 0, f"the lock interrupted at {stepper.where} to be free")
        until(lambda: not provider.held_locks(), f"the lock interrupted at {stepper.where} to be gone")


# Between a call and our first line, no library can help: then the lock is free when its object is garbage.
@pytest.mark.filterwarnings("ignore:dlock. key 'k'. the lock object became garbage:ResourceWarning")
@pytest.mark.parametrize("use", [in_a_with, by_hand, closed, decorated])
def test_an_interrupt_at_any_moment_leaves_no_lock(house: House, use: Callable[[LockProvider], None]) -> None:
    """Neither at the server nor in the bookkeeping: others get the lock, and so does the interrupted thread."""
    provider = house.new_provider()
    assert isinstance(provider, LockProvider)
    assert walk(house, provider, use) > MANY
    assert provider.held_locks() == []
    stranger = house.stranger()
    assert stranger.acquire("k", timeout=5)
    stranger.release()
    with provider.lock("k", timeout=5) as lock:
        assert lock.held


def test_an_interrupt_at_any_moment_of_a_wait(house: House) -> None:
    """Another process holds the lock: the wait ends, in this process and at the server."""
    provider, holder = house.new_provider(), house.stranger()
    assert isinstance(provider, LockProvider)
    assert holder.acquire("k")
    moment, hit = 0, True
    while hit:
        moment += 1
        lock = provider.lock("k", timeout=0.05)
        with interrupted_at(moment) as stepper:
            assert not lock.acquire()
        hit = stepper.hit
        until(lambda: house.witness.waiters() == 0, f"the wait interrupted at {stepper.where} to end")
    assert moment > MANY_OF_A_WAIT
    holder.release()
    with provider.lock("k", timeout=5):
        assert house.witness.holders() == 1
