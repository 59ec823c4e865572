"""Shared locks: many readers or one writer."""

from __future__ import annotations

import pytest

from dlock_core import UnsupportedError

from .house import House, until

pytestmark = pytest.mark.rows(lambda row: row.shared)


@pytest.mark.rows(lambda row: not row.shared)
def test_a_database_without_shared_locks_says_which_have_them(house: House) -> None:
    """The mistake shows where the lock is made, and at import for a decorator."""
    for make in (house.maker(), house.provider.locked):
        with pytest.raises(
            UnsupportedError, match=r"'k': GET_LOCK has no .*; PostgreSQL, SQL Server, Oracle and SQLite have"
        ):
            make("k", shared=True)


@pytest.mark.parametrize("own_provider", [False, True], ids=["same-process", "stranger"])
def test_readers_share_and_exclude_a_writer(house: House, own_provider: bool) -> None:
    """A writer gets in when the last reader has left, and then keeps readers out."""
    first, writer = house.person(), house.person()
    second = house.stranger() if own_provider else house.person()
    assert first.acquire("k", shared=True)
    assert second.acquire("k", shared=True, timeout=0)
    assert not writer.acquire("k", timeout=0)
    first.release()
    assert not writer.acquire("k", timeout=0.05)
    second.release()
    assert writer.acquire("k", timeout=0)
    assert not first.acquire("k", shared=True, timeout=0)
    assert not second.acquire("k", shared=True, timeout=0.05)
    writer.release()


def test_a_waiting_writer_goes_before_later_readers_of_its_process(house: House) -> None:
    """Readers cannot starve a writer."""
    reader, writer, late = house.person(), house.person(), house.person()
    assert reader.acquire("k", shared=True)
    writing = writer.begin("k", timeout=20)
    until(lambda: _queued(house) == 1)
    assert not late.acquire("k", shared=True, timeout=0)
    reading = late.begin("k", shared=True, timeout=20)
    until(lambda: _queued(house) == 2)
    reader.release()
    assert writing.result(5)
    assert not reading.done()
    writer.release()
    assert reading.result(5)
    late.release()


def test_readers_that_queued_behind_a_writer_read_together(house: House) -> None:
    """The writer's release lets all of them in."""
    writer, readers = house.person(), [house.person() for _ in range(5)]
    assert writer.acquire("k")
    waits = [reader.begin("k", shared=True, timeout=20) for reader in readers]
    until(lambda: _queued(house) == 5)
    writer.release()
    assert all(wait.result(5) for wait in waits)
    assert not writer.acquire("k", timeout=0)
    for reader in readers:
        reader.release()


def test_single_tries_of_two_readers_at_one_moment_both_succeed(house: House) -> None:
    """A try does not mistake another reader's unanswered try for a refusal."""
    readers = [house.person() for _ in range(6)]
    for _ in range(20):
        tries = [reader.begin("k", shared=True, timeout=0) for reader in readers]
        assert all(attempt.result(10) for attempt in tries)
        for reader in readers:
            reader.release()


def test_the_same_owner_does_not_become_reader_twice(house: House) -> None:
    """Readers too own their lock: a second take by the same is a conflict on every database."""
    reader = house.person()
    assert reader.acquire("k", shared=True)
    assert not reader.acquire("k", shared=True, timeout=0)
    reader.release()


def _queued(house: House) -> int:
    entries = house.provider._coordinator.entries
    return sum(len(entry.queue) for entry in list(entries._entries.values()))
