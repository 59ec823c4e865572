"""Calls: the main thread waits while a helper works, and hears its signals."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Iterator
from functools import partial

import pytest

from dlock_core.coordination.main_thread import MainThreadCall
from dlock_core.sessions.workers import Workers


class CalledAwayError(Exception):
    """What the handler raises."""


@pytest.fixture
def _handled() -> Iterator[None]:
    """A handler that raises."""

    def handle(*_: object) -> None:
        raise CalledAwayError

    before = signal.signal(signal.SIGUSR1, handle)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("_handled")
def test_a_signal_that_does_not_wake_the_main_thread_is_heard_all_the_same() -> None:
    """As one that arrives just before the thread falls asleep; here the kernel gives it to another thread."""
    called_away = threading.Event()
    in_time = []

    def work() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        in_time.append(called_away.wait(10))

    call = MainThreadCall(Workers(), work, lambda call: call.over())
    with pytest.raises(CalledAwayError):
        call.result()
    called_away.set()
    assert call.over(10)
    assert in_time == [True]


class SlowBell:
    """A bell whose ringer is held up directly after it has rung."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self.go_on = threading.Event()

    def acquire(self, timeout: float) -> bool:
        """Wait for it."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Ring."""
        self._lock.release()
        self.go_on.wait(10)


def test_a_helper_refers_to_nothing_of_the_work_when_the_main_thread_goes_on() -> None:
    """Else a lock that the main thread forgets now would not be garbage yet, and it would be refused its own key."""
    work = partial(int)
    kept = weakref.ref(work)
    call = MainThreadCall(Workers(), work, lambda call: call.over())
    call._bell = bell = SlowBell()  # type: ignore[assignment]
    assert call.result() == 0
    del call, work
    assert kept() is None
    bell.go_on.set()
