"""What a signal handler raised is distinguished from what the interrupted code raised."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from dlock_core.dialects.failures import from_handler


def _raise(*_: object) -> None:
    raise TimeoutError("mine")


class Handler:
    """A handler with a state of its own."""

    def __call__(self, *_: object) -> None:
        self.method()

    def method(self, *_: object) -> None:
        raise TimeoutError("mine")


@pytest.fixture
def _restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def _caught(function: Callable[[], object]) -> BaseException:
    with pytest.raises(TimeoutError) as caught:
        function()
    return caught.value


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("handler", [_raise, partial(_raise, 1), Handler(), Handler().method, lambda *_: _raise()])
def test_what_a_handler_raises_is_recognised(handler: Any) -> None:
    """Whatever kind of callable the handler is, and however deep it raises."""
    signal.signal(signal.SIGUSR1, handler)
    assert from_handler(_caught(lambda: signal.raise_signal(signal.SIGUSR1)))


@pytest.mark.usefixtures("_restored")
def test_what_other_code_raises_is_not_a_handlers() -> None:
    """The same class from elsewhere, while a handler is installed."""

    def fail() -> None:
        raise TimeoutError

    signal.signal(signal.SIGUSR1, _raise)
    assert not from_handler(_caught(fail))
