"""Sessions that end under a lock, and what must not be left."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

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
    """The user sees his exception, with a note about the loss."""

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
    """Nothing is left, and nobody waits for ever."""
    provider = house.new_provider()
    holder, waiter = house.person(provider), house.person(provider)
    assert holder.acquire("k")
    wait = waiter.begin("k")
    until(lambda: len(provider._manager.entries._awaited) == 1)
    house.close_provider(provider)
    with pytest.raises(LockStateError, match=r"'k'.*closed"):
        wait.result(5)
    with pytest.raises(LockStateError, match=r"closed"):
        waiter.acquire("other", timeout=0)
    stranger = house.stranger()
    assert stranger.acquire("k", timeout=5)
    stranger.release()
    assert holder.locks[0].lost


def test_a_forgotten_provider_leaves_nothing(house: House) -> None:
    """Garbage collection of a provider ends its idle sessions."""
    provider = house.new_provider()
    person = house.person(provider)
    assert person.acquire("k")
    person.release()
    if isinstance(provider, LockProvider):
        with provider as same:
            assert same is provider
    else:
        house.close_provider(provider)
    house.providers.remove(provider)
