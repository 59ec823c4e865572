"""The executor for aioodbc: no function beside another, none begun that nobody wants."""

from __future__ import annotations

import threading

import pytest

from dlock_core import onebyone
from dlock_core.onebyone import OneByOne

from .fake_server import until


def test_functions_run_one_at_a_time() -> None:
    """A connection is never closed under its own statement."""
    executor, inside, most = OneByOne(), 0, 0

    def work() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    for future in [executor.submit(work) for _ in range(50)]:
        future.result(5)
    assert most == 1


def test_a_function_that_has_not_begun_can_be_cancelled() -> None:
    """As asyncio does for a task that goes."""
    executor, gate = OneByOne(), threading.Event()
    ran: list[int] = []
    first = executor.submit(gate.wait, 5)
    second = executor.submit(ran.append, 1)
    assert second.cancel()
    gate.set()
    assert first.result(5)
    assert executor.submit(len, ran).result(5) == 0


def test_an_error_belongs_to_whoever_waits() -> None:
    """And the next function runs."""
    executor = OneByOne()
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 // 0).result(5)
    assert executor.submit(int, "7").result(5) == 7


def test_a_cancel_is_repeated_until_the_statement_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may come before the driver has begun; none comes after the end."""
    monkeypatch.setattr(onebyone, "INSIST", 0.3)
    executor, cancels, gate = OneByOne(), [0], threading.Event()

    def cancel() -> None:
        cancels[0] += 1
        if cancels[0] == 3:
            gate.set()

    running = executor.submit(gate.wait, 5)
    executor.stop(cancel)
    assert running.result(5)
    until(lambda: executor.submit(int).result(5) == 0)
    assert cancels[0] == 3


def test_other_drivers_have_none() -> None:
    """Nothing of theirs is touched."""
    assert OneByOne.of(object()) is None
