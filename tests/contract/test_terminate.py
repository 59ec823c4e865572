"""An end to one lock of a process that is at work takes no other lock with it."""

from __future__ import annotations

import threading

import pytest

from dlock_core import LockError, LockProvider, LockStateError
from tests.conftest import server
from tests.servers import wait_until

TERMINATIONS = 40
# A lock that is granted while the server's signal is on its way to the session is lost with it: how many may be.
IN_FLIGHT = 4
# Seconds: in them a loss is noticed while the lock is held.
WORK = 0.005


class Busy:
    """A thread that does a little work under another lock of the provider, again and again."""

    def __init__(self, locks: LockProvider) -> None:
        self._locks = locks
        self._over = threading.Event()
        self.rounds = 0
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.is_set():
            lock = self._locks.lock("innocent")
            try:
                with lock:
                    self._over.wait(WORK)
            except LockError:  # which locks were lost, the provider tells
                continue
            self.rounds += 1
            self._over.wait(WORK)

    def stop(self) -> None:
        """Let it end."""
        self._over.set()
        self._thread.join()


def _terminate(looking: LockProvider) -> None:
    """End the target's session as soon as nothing else is on it."""
    (info,) = looking.inspect("target")

    def ended() -> bool:
        try:
            return looking.terminate(info)
        except LockStateError:
            return False

    wait_until(ended, "the session to be ended", 30)


def test_terminating_a_lock_of_a_busy_process_ends_hardly_any_other_lock() -> None:
    """PostgreSQL counts the session's locks in the statement that ends it; before, one in three cost another lock."""
    url = server("postgresql").url("postgresql+psycopg")
    lost: list[object] = []
    with LockProvider(url, on_lost=lambda lock: lost.append(lock.key)) as locks, LockProvider(url) as looking:
        busy = Busy(locks)
        try:
            for number in range(1, TERMINATIONS + 1):
                target = locks.lock("target")
                target.acquire(timeout=30)
                before = busy.rounds
                wait_until(lambda before=before: busy.rounds > before, "work", 30)  # type: ignore[misc]
                _terminate(looking)
                wait_until(lambda number=number: lost.count("target") == number, "the loss", 30)  # type: ignore[misc]
                with pytest.raises(LockError):
                    target.release()
        finally:
            busy.stop()
    assert lost.count("target") == TERMINATIONS
    assert lost.count("innocent") <= IN_FLIGHT


def test_a_target_that_takes_another_lock_meanwhile_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """MariaDB cannot count and kill in one statement, so we count again directly before."""
    url = server("mariadb").url("mysql+pymysql")
    with LockProvider(url) as locks, LockProvider(url) as looking, locks.lock("target") as target:
        (info,) = looking.inspect("target")
        inspector = looking._inspector
        refuse = inspector._refuse_others
        asked: list[int] = []

        def refuse_then_work(*arguments: object) -> None:
            refuse(*arguments)  # type: ignore[arg-type]
            asked.append(1)
            if len(asked) == 1:
                other.acquire(timeout=10)

        other = locks.lock("innocent")
        monkeypatch.setattr(inspector, "_refuse_others", refuse_then_work)
        with pytest.raises(LockStateError, match="innocent"):
            looking.terminate(info)
        assert target.held
        assert asked == [1]
        other.release()
