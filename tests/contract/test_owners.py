"""The owner of a lock, and an owner that would wait for itself."""

from __future__ import annotations

import time
from functools import partial

import pytest

from dlock_core import DeadlockError

from .house import House, until


def test_the_same_owner_is_refused_a_second_take(house: House) -> None:
    """A try answers False, a wait is a deadlock at once; the first hold is untouched."""
    person = house.person()
    assert person.acquire("k")
    assert not person.acquire("k", timeout=0)
    for timeout in (None, 5):
        started = time.monotonic()
        with pytest.raises(DeadlockError, match=r"'k'.*itself"):
            person.acquire("k", timeout=timeout)
        assert time.monotonic() - started < 1
    assert house.witness.holders() == 1
    person.do(person.locks[0].release)
    assert house.witness.holders() == 0


def test_a_cycle_of_two_is_a_deadlock_at_once(house: House) -> None:
    """Two that hold X and Y and want the other: one is refused, the other goes on."""
    first, second = house.person(), house.person()
    assert first.acquire("x")
    assert second.acquire("y")
    wait = first.begin("y", timeout=20)
    until(lambda: not first.locks[1].held and not wait.done() and _awaits(house, 1))
    started = time.monotonic()
    with pytest.raises(DeadlockError, match=r"'x'.*sorted"):
        second.acquire("x", timeout=20)
    assert time.monotonic() - started < 1
    assert not wait.done()
    second.do(second.locks[0].release)
    assert wait.result(5)
    first.do(first.locks[1].release)
    first.do(first.locks[0].release)


def test_a_cycle_of_three_is_a_deadlock_at_once(house: House) -> None:
    """The walk goes through others that wait."""
    people = [house.person() for _ in range(3)]
    for number, person in enumerate(people):
        assert person.acquire(number)
    waits = []
    for number in (0, 1):
        waits.append(people[number].begin(number + 1, timeout=20))
        until(partial(_awaits, house, number + 1))
    with pytest.raises(DeadlockError):
        people[2].acquire(0, timeout=20)
    for number in (2, 1, 0):
        people[number].do(people[number].locks[0].release)
        if number:
            assert waits[number - 1].result(5)
            people[number - 1].do(people[number - 1].locks[1].release)


def _awaits(house: House, count: int) -> bool:
    return len(house.provider._coordinator.entries._awaited) == count


def test_a_disowned_lock_may_be_waited_for_by_its_former_owner(house: House) -> None:
    """`disown()` says that another will release."""
    person, helper = house.person(), house.person()
    assert person.acquire("k")
    person.locks[0].disown()
    wait = person.begin("k", timeout=20)
    until(lambda: _awaits(house, 1))
    helper.do(person.locks[0].release)
    assert wait.result(5)
    person.do(person.locks[1].release)
