"""Children of a process that holds locks, or has sessions open."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from dlock_core import LockProvider, LockStateError

from .house import House, until

pytestmark = [
    # a child's database in memory is its own
    pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),
]


class Child:
    """A forked child that runs a body and ends with its answer as exit status."""

    def __init__(self, body: Callable[[], int]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                status = body()
            except BaseException:
                traceback.print_exc()
                status = 99
            finally:
                sys.stderr.flush()
                os._exit(status)

    def status(self) -> int:
        """Wait for its end."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def gate() -> Iterator[tuple[int, int]]:
    """A pipe: the parent opens the gate by closing its end."""
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            continue


def test_a_child_does_not_release_its_parents_lock(house: House) -> None:
    """Leaving the `with` in the child does nothing at the server; the parent still holds."""
    provider = house.provider
    assert isinstance(provider, LockProvider)
    lock = provider.lock("k")
    with lock:

        def body() -> int:
            assert not lock.held
            lock.close()
            with pytest.raises(LockStateError):
                lock.release()
            return 0

        assert Child(body).status() == 0
        assert house.witness.holders() == 1
        stranger = house.stranger()
        assert not stranger.acquire("k", timeout=0)
    assert stranger.acquire("k", timeout=0)
    stranger.release()


def test_a_child_is_excluded_by_its_parent_and_works_on_its_own(house: House, gate: tuple[int, int]) -> None:
    """The child's own locks work: refused while the parent holds, granted afterwards."""
    provider = house.provider
    assert isinstance(provider, LockProvider)
    warm = provider.lock("warm")
    with warm:
        pass
    lock = provider.lock("k")
    lock.acquire()
    reader, writer = gate
    refused, tell = os.pipe()

    def body() -> int:
        os.close(writer)
        assert not provider.lock("k").acquire(timeout=0)
        with provider.lock("other", timeout=5):
            os.write(tell, b"!")
        os.read(reader, 1)
        with provider.lock("k", timeout=5):
            return 7

    child = Child(body)
    os.close(tell)
    assert os.read(refused, 1) == b"!"
    os.close(refused)
    lock.release()
    os.close(writer)
    assert child.status() == 7
    with provider.lock("k", timeout=5):
        pass


@pytest.mark.parametrize("warm_engine", [False, True], ids=["cold-engine", "warm-engine"])
def test_of_two_children_one_gets_the_key(house: House, gate: tuple[int, int], warm_engine: bool) -> None:
    """Children share no server session, even with a parent whose engine and provider are warm."""
    provider = house.provider
    assert isinstance(provider, LockProvider)
    if warm_engine:
        with house.engines[0].connect() as connection:
            connection.execute(sa.text("SELECT 1"))
        with provider.lock("warm"):
            pass
    reader, writer = gate
    tried, tell = os.pipe()

    def body() -> int:
        os.close(writer)
        lock = provider.lock("k")
        granted = lock.acquire(timeout=0)
        os.write(tell, b"!")
        os.read(reader, 1)
        return int(granted)

    children = [Child(body) for _ in range(2)]
    assert os.read(tried, 1) + os.read(tried, 1) == b"!!"
    os.close(writer)
    os.close(tried)
    os.close(tell)
    assert sorted(child.status() for child in children) == [0, 1]


@pytest.mark.rows(lambda row: row.api == "sync" and row.is_server and not row.in_memory)
def test_a_lock_of_a_killed_parent_is_free_while_its_child_lives(house: House, gate: tuple[int, int]) -> None:
    """The child keeps no copy of the parent's connection open."""
    reader, writer = gate

    def parent() -> int:
        provider = LockProvider(house.url)
        lock = provider.lock("k")
        lock.acquire()
        grandchild = Child(lambda: os.close(writer) or len(os.read(reader, 1)))  # type: ignore[func-returns-value]
        assert grandchild.pid
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    assert Child(parent).status() == -signal.SIGKILL
    until(lambda: house.witness.holders() == 0)
    stranger = house.stranger()
    assert stranger.acquire("k", timeout=5)
    stranger.release()


def test_a_child_that_ends_in_any_way_leaves_the_parents_lock(house: House) -> None:
    """Return, exception, sys.exit with all its clean-up, and SIGKILL."""
    provider = house.provider
    assert isinstance(provider, LockProvider)

    def vanish() -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 1

    with provider.lock("k"):
        for body, status in ((lambda: 0, 0), (vanish, -signal.SIGKILL), (lambda: 1 // 0, 99)):
            assert Child(body).status() == status
            assert house.witness.holders() == 1
        program = "import os, sys; from tests.contract.forked import main; main(sys.argv[1])"
        assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", program, house.url) == 0
