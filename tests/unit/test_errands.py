"""Errands: the main thread waits while a helper works, and hears its signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from dlock_core.errands import Errand
from dlock_core.threads import Workers


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

    errand = Errand(Workers(), work, lambda errand: errand.over())
    with pytest.raises(CalledAwayError):
        errand.result()
    called_away.set()
    assert errand.over(10)
    assert in_time == [True]
