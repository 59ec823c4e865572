"""What users' own tests are given."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dlock_core import LockConnectionError, LockLostError, LockProvider, LockStateError
from dlock_core.contrib.testing import MemoryDatabase, hold


@pytest.fixture
def database() -> Iterator[MemoryDatabase]:
    """A database in memory."""
    with MemoryDatabase() as database:
        yield database


def test_providers_of_one_database_exclude_each_other(database: MemoryDatabase) -> None:
    """As processes do; those of another database do not."""
    ours, theirs = database.provider(), database.provider()
    with ours.lock("k"), MemoryDatabase() as other, other.provider().lock("k", timeout=0):
        assert not theirs.lock("k").acquire(timeout=0)
    lock = theirs.lock("k")
    assert lock.acquire(timeout=0)
    lock.release()


def test_another_holds_for_a_while(database: MemoryDatabase) -> None:
    """Under a prefix, exclusively or shared."""
    locks = database.provider(prefix="shop")
    with database.held("k", prefix="shop"):
        assert not locks.lock("k").acquire(timeout=0)
    held = database.held("k", prefix="shop")
    with (
        database.held("k", prefix="shop", shared=True),
        locks.lock("k", shared=True, timeout=0),
        pytest.raises(LockStateError, match="it is held already"),
    ):
        held.__enter__()


def test_a_loss_is_noticed_by_its_holder(database: MemoryDatabase) -> None:
    """All that a real loss does: the callback, the flags, the error at the end."""
    heard = threading.Event()
    locks = database.provider()
    with pytest.raises(LockLostError), locks.lock("k", on_lost=lambda _: heard.set()) as lock:
        database.lose("k")
        assert heard.wait(5)
        assert (lock.lost, lock.held) == (True, False)
    with pytest.raises(LockStateError, match="it is not held, so it cannot be lost"):
        database.lose("k")


def test_a_task_is_cancelled_by_a_loss_where_it_wants_to_be(database: MemoryDatabase) -> None:
    """The asyncio side of the same."""
    locks = database.provider()

    async def work() -> None:
        async with locks.alock("k", cancel_on_lost=True):
            await asyncio.to_thread(database.lose, "k")
            await asyncio.sleep(60)

    with pytest.raises(LockLostError):
        asyncio.run(work())


def test_a_database_that_cannot_be_reached_is_back_later(database: MemoryDatabase) -> None:
    """As often as was asked for."""
    locks = database.provider()
    database.drop(2)
    for _ in range(2):
        with pytest.raises(LockConnectionError, match=r"key 'k'.*cannot be reached"):
            locks.lock("k").acquire()
    with locks.lock("k", timeout=0):
        pass


def test_a_slow_database_is_slow(database: MemoryDatabase) -> None:
    """Never faster than it was asked to be."""
    locks = database.provider()
    database.delay(0.05)
    started = time.monotonic()
    with locks.lock("k"):
        pass
    assert time.monotonic() - started >= 0.1
    database.delay(0)


def test_a_lock_can_be_held_in_a_real_database_too(tmp_path: Path) -> None:
    """By a stranger to the provider under test."""
    with LockProvider(sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}"), prefix="shop") as locks:
        with hold(locks, "k"):
            assert not locks.lock("k").acquire(timeout=0)
        with locks.lock("k", timeout=0):
            pass


USERS_TESTS = """
import pytest
from dlock_core import LockProvider, LockTimeoutError

def import_orders(locks):
    try:
        with locks.lock("import", timeout=0):
            return "done"
    except LockTimeoutError:
        return "skipped"

def test_with_a_database_in_memory(lock_database):
    locks = lock_database.provider()
    assert import_orders(locks) == "done"
    with lock_database.held("import"):
        assert import_orders(locks) == "skipped"

@pytest.fixture
def locks(tmp_path):
    with LockProvider(f"sqlite:///{tmp_path / 'app.db'}") as provider:
        yield provider

def test_with_a_lock_held_elsewhere(locks, hold_lock):
    assert import_orders(locks) == "done"
    hold_lock(locks, "import")
    assert import_orders(locks) == "skipped"
"""


def test_pytest_finds_the_fixtures(tmp_path: Path) -> None:
    """Installed beside pytest, they need no import."""
    (tmp_path / "test_users.py").write_text(USERS_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
