"""Sessions that end under a lock, and what must not be left."""

from __future__ import annotations

import gc
import traceback
import weakref
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from dlock_core import LockLostError, LockProvider, LockStateError

from .house import House, until
from .persons import AnyLock


def test_a_release_after_the_session_ended_says_that_the_lock_was_lost(house: House) -> None:
    """The loss is not silent, and the key can be taken again."""
    person = house.person()
    assert person.acquire("orders")
    house.witness.break_lock()
    with pytest.raises(LockLostError, match="'orders'"):
        person.do(person.locks[0].release)
    assert not person.locks[0].held
    assert person.acquire("orders", timeout=5)
    person.release()


def test_with_raises_at_its_end_when_the_lock_was_lost(house: House) -> None:
    """A body that ended well learns that it was not protected."""
    with pytest.raises(LockLostError):
        house.person().within("k", lambda _: house.witness.break_lock())


def test_a_loss_does_not_hide_the_bodys_own_error(house: House) -> None:
    """The user sees its exception, with a note about the loss."""

    def body(_: AnyLock) -> Any:
        house.witness.break_lock()
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        house.person().within("k", body)
    assert "lost" in "".join(traceback.format_exception(caught.value))


def test_sessions_that_died_while_idle_are_replaced(house: House) -> None:
    """After a restart or failover the next lock needs no restart of the process."""
    people = [house.person() for _ in range(4)]
    for number, person in enumerate(people):
        assert person.acquire(number)
    for person in people:
        person.release()
    house.witness.end_idle()
    for number, person in enumerate(people):
        assert person.acquire(number, timeout=0)
        person.release()


@pytest.mark.rows(lambda row: row.is_server)
def test_a_dropped_session_is_free_while_its_traceback_lives(house: House) -> None:
    """An error in the wait ends the session at the server, not when garbage is collected."""
    holder, waiter, third = house.stranger(), house.person(), house.stranger()
    assert holder.acquire("k")
    wait = waiter.begin("k", timeout=20)
    until(lambda: house.witness.waiters() == 1)
    house.witness.cancel_waiters()
    error = wait.exception(10)
    assert error is not None
    assert error.__traceback__ is not None
    until(lambda: house.witness.waiters() == 0)
    holder.release()
    assert third.acquire("k", timeout=0)
    third.release()


def test_closing_the_provider_frees_its_locks_and_wakes_its_waiters(house: House) -> None:
    """Nothing is left, and no caller waits without limit."""
    provider = house.new_provider()
    holder, waiter = house.person(provider), house.person(provider)
    assert holder.acquire("k")
    wait = waiter.begin("k")
    until(lambda: len(provider._coordinator.entries._awaited) == 1)
    house.close_provider(provider)
    with pytest.raises(LockStateError, match=r"'k'.*closed"):
        wait.result(5)
    with pytest.raises(LockStateError, match=r"closed"):
        waiter.acquire("other", timeout=0)
    stranger = house.stranger()
    assert stranger.acquire("k", timeout=5)
    stranger.release()
    assert holder.locks[0].lost


def test_a_closed_provider_leaves_nothing(house: House) -> None:
    """Its idle sessions end with it, also by `with`."""
    provider = house.new_provider()
    before = house.witness.sessions()
    person = house.person(provider)
    assert person.acquire("k")
    person.release()
    if isinstance(provider, LockProvider):
        with provider as same:
            assert same is provider
    else:
        house.close_provider(provider)
    house.providers.remove(provider)
    until(lambda: house.witness.sessions() <= before, "its sessions to end")


def test_an_abandoned_provider_leaves_nothing(house: House) -> None:
    """Garbage collection of a provider ends its idle sessions."""
    before = house.witness.sessions()
    person = house.person(house.new_provider())
    assert person.acquire("k")
    person.release()
    person.leave()
    abandoned = weakref.ref(house.providers.pop())
    house.persons.remove(person)
    del person

    def gone() -> bool:
        gc.collect()
        return abandoned() is None and house.witness.sessions() <= before

    until(gone, "the provider and its sessions to be gone")


@pytest.mark.rows(lambda row: row.api == "sync" and row.is_server and not row.share_sessions)
def test_a_lost_lock_that_nobody_releases_keeps_no_session_for_its_owner(house: House) -> None:
    """When its object is garbage, nothing is left in the bookkeeping."""
    assert isinstance(house.provider, LockProvider)
    lock = house.provider.lock("k")
    assert lock.acquire()
    owned = house.provider._coordinator._policies[None]._owned
    assert len(owned) == 1
    house.witness.break_lock()
    until(partial(getattr, lock, "lost"))
    del lock
    until(lambda: not owned)


UNLOCK_ALL = {
    "postgresql": "SELECT 1 FROM (SELECT pg_advisory_unlock_all()) AS _",
    "mysql": "SELECT RELEASE_ALL_LOCKS()",
    "mariadb": "SELECT RELEASE_ALL_LOCKS()",
}


@pytest.mark.rows(lambda row: row.server in UNLOCK_ALL and row.api == "sync")
def test_a_lock_that_the_server_says_is_not_held_was_lost(house: House) -> None:
    """Its session lives; only the answer to the release tells. That is a loss like any other: `on_lost` hears of it."""
    told: list[Any] = []
    person = house.person()
    assert person.acquire("k", on_lost=told.append)
    (ticket,) = house.providers[0]._coordinator.entries.held()
    session: Any = ticket.session
    person.do(lambda: session.first(sa.text(UNLOCK_ALL[house.row.server])))
    assert house.witness.holders() == 0
    with pytest.raises(LockLostError, match="did not hold it"):
        person.release()
    until(lambda: told == [person.locks[0]])
    assert person.acquire("k", timeout=0)
    person.release()
