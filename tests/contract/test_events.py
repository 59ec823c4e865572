"""What listeners hear, on every row."""

from __future__ import annotations

import logging
import queue

import pytest

from dlock_core import (
    LockAcquired,
    LockAttempt,
    LockEvent,
    LockLostError,
    LockNotAcquired,
    LockProvider,
    LockReleased,
)

from .house import House, until


class Diary:
    """A listener that remembers."""

    def __init__(self, house: House) -> None:
        self.events: queue.SimpleQueue[LockEvent] = queue.SimpleQueue()
        self.stop = house.provider.listen(self.events.put)

    def read(self) -> list[LockEvent]:
        """Return what was reported since the last time."""
        return [self.events.get() for _ in range(self.events.qsize())]


@pytest.fixture
def diary(house: House) -> Diary:
    """A listener of the house's own provider."""
    return Diary(house)


def test_an_acquisition_and_its_end_are_reported(house: House, diary: Diary) -> None:
    """With key, mode and times."""
    person = house.person()
    person.acquire(("order", 7), timeout=5)
    person.release()
    attempt, acquired, released = diary.read()
    lock = person.locks[0]
    for event in (attempt, acquired, released):
        assert (event.key, event.actual_key, event.mode) == (("order", 7), lock.actual_key, "exclusive")
        assert event.database in ("postgresql", "mysql", "mariadb", "sqlite", "mssql", "oracle")
    assert isinstance(attempt, LockAttempt)
    assert isinstance(acquired, LockAcquired)
    assert isinstance(released, LockReleased)
    assert attempt.timeout == 5
    assert 0 <= acquired.waited < 5
    assert 0 <= released.held_for < 5


def test_a_refusal_is_reported(house: House, diary: Diary) -> None:
    """As what it is: no error."""
    holder = house.stranger()
    holder.acquire("k")
    assert not house.person().acquire("k", timeout=0)
    _, refused = diary.read()
    assert isinstance(refused, LockNotAcquired)
    assert refused.error is None
    holder.release()


def test_an_error_of_a_wait_is_reported_and_raised(house: House, diary: Diary) -> None:
    """By its class."""
    person = house.person()
    person.acquire("k")
    with pytest.raises(Exception, match="would wait for itself"):
        person.acquire("k", timeout=5)
    refused = diary.read()[-1]
    assert isinstance(refused, LockNotAcquired)
    assert refused.error == "DeadlockError"
    person.release()


def test_a_loss_is_reported_once(house: House, diary: Diary) -> None:
    """By the watch or at the release, whichever is first."""
    person = house.person()
    person.acquire("k")
    house.witness.break_lock()
    with pytest.raises(LockLostError):
        person.release()
    until(lambda: diary.events.qsize() >= 3, "the loss to be reported")
    noted = [type(event).__name__ for event in diary.read()]
    assert noted == ["LockAttempt", "LockAcquired", "LockLost"]


def test_a_listener_that_stops_hears_no_more(house: House, diary: Diary) -> None:
    """And no other is affected."""
    other = Diary(house)
    diary.stop()
    person = house.person()
    person.acquire("k")
    person.release()
    assert diary.read() == []
    assert len(other.read()) == 3


def test_a_listener_s_error_is_logged_and_costs_no_lock(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor the other listeners their events."""

    def broken(event: LockEvent) -> None:
        raise RuntimeError("out of paper")

    heard: list[LockEvent] = []
    with LockProvider(f"sqlite:///{tmp_path_factory.mktemp('events') / 'app.db'}") as locks:
        locks.listen(broken)
        locks.listen(heard.append)
        with caplog.at_level(logging.ERROR, "dlock"), locks.lock("k") as lock:
            assert lock.held
    assert len(heard) == 3
    assert "a listener failed on key 'k'" in caplog.text
    assert "out of paper" in caplog.text
