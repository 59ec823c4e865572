"""No function of a driver beside another, no close under a statement or beside a cancel."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from dlock_core.sessions import drivers
from dlock_core.sessions.drivers import Closing, SerialExecutor
from dlock_core.sessions.workers import Workers

from .fake_server import until


def test_functions_run_one_at_a_time() -> None:
    """A connection is never closed under its own statement."""
    executor, inside, most = SerialExecutor(), 0, 0

    def work() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    for future in [executor.submit(work) for _ in range(50)]:
        future.result(5)
    assert most == 1


def test_functions_run_in_the_order_of_their_submission() -> None:
    """A close comes after the statements before it."""
    executor, gate = SerialExecutor(), threading.Event()
    order: list[int] = []
    executor.submit(gate.wait, 5)
    futures = [executor.submit(order.append, number) for number in range(50)]
    gate.set()
    for future in futures:
        future.result(5)
    assert order == list(range(50))


def test_a_function_that_has_not_begun_can_be_cancelled() -> None:
    """As asyncio does for a task that goes."""
    executor, gate = SerialExecutor(), threading.Event()
    ran: list[int] = []
    first = executor.submit(gate.wait, 60)
    second = executor.submit(ran.append, 1)
    assert second.cancel()
    gate.set()
    assert first.result(60)
    assert executor.submit(len, ran).result(60) == 0


def test_an_error_belongs_to_its_waiter() -> None:
    """And the next function runs."""
    executor = SerialExecutor()
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 // 0).result(5)
    assert executor.submit(int, "7").result(5) == 7


def test_a_cancel_is_repeated_until_the_statement_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may come before the driver has begun; none comes after the end."""
    monkeypatch.setattr(drivers, "INSIST", 0.3)
    executor, cancels, gate = SerialExecutor(), [0], threading.Event()

    def cancel() -> None:
        cancels[0] += 1
        if cancels[0] == 3:
            gate.set()

    running = executor.submit(gate.wait, 5)
    executor.stop(cancel)
    assert running.result(5)
    until(lambda: executor.submit(int).result(5) == 0)
    assert cancels[0] == 3


def test_a_cancel_that_fails_is_not_repeated_and_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver has closed the cursor a moment ago; a thread that dies of it would tell the whole program."""
    executor, gate, cancels, workers = SerialExecutor(), threading.Event(), [0], Workers()
    heard: list[object] = []
    monkeypatch.setattr(drivers, "_workers", workers)
    monkeypatch.setattr(threading, "excepthook", heard.append)

    def cancel() -> None:
        cancels[0] += 1
        raise ValueError("Attempt to use a closed cursor.")

    running = executor.submit(gate.wait, 60)
    executor.stop(cancel)
    until(lambda: len(workers._idle) == 1)
    assert not running.done()
    gate.set()
    assert running.result(60)
    assert (heard, cancels) == ([], [1])


def test_what_follows_waits_for_a_cancel_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement has heard it already, and the connection is closed next: Microsoft's driver crashes then."""
    executor, statement, under_way, over = SerialExecutor(), *(threading.Event() for _ in range(3))
    order: list[str] = []

    def cancel() -> None:
        under_way.set()
        assert over.wait(5)
        order.append("cancelled")

    executor.submit(statement.wait, 5)
    executor.stop(cancel)
    assert under_way.wait(5)
    closing = executor.submit(order.append, "closed")
    statement.set()
    with pytest.raises(TimeoutError):
        closing.result(0.1)
    over.set()
    closing.result(5)
    assert order == ["cancelled", "closed"]


class Connection:
    """What of aioodbc's matters here."""

    __module__ = "aioodbc.connection"

    def __init__(self) -> None:
        self._executor: Any = None
        self._conn: Any = self

    @property
    def closed(self) -> bool:
        return self._conn is None

    def __del__(self) -> None:
        self._conn.close()


class DriverConnection:
    """Notes whether it was closed under a statement."""

    def __init__(self) -> None:
        self.works = False
        self.closed_under: list[bool] = []

    def work(self, gate: threading.Event) -> None:
        self.works = True
        gate.wait(5)
        self.works = False

    def close(self) -> None:
        self.closed_under.append(self.works)


def test_garbage_is_closed_after_its_statement() -> None:
    """SQLAlchemy forgets a connection whose opening is cancelled; aioodbc would close it where it stands."""
    driver, connection, gate = DriverConnection(), Connection(), threading.Event()
    connection._conn = driver
    SerialExecutor.adopt(connection)
    working: Future[None] = connection._executor.submit(driver.work, gate)
    until(lambda: driver.works)
    del connection
    gc.collect()
    assert driver.closed_under == []
    gate.set()
    working.result(5)
    until(lambda: driver.closed_under == [False])


def test_other_drivers_have_none() -> None:
    """Nothing of theirs is touched."""
    assert SerialExecutor.of(object()) is None
    other = DriverConnection()
    SerialExecutor.adopt(other)
    assert type(other) is DriverConnection


def test_a_close_beside_a_cancel_is_left_to_the_canceller() -> None:
    """No caller waits for a cancel, which may have to connect first."""
    closing, under_way, over = Closing(), threading.Event(), threading.Event()
    order: list[str] = []

    def cancel() -> None:
        under_way.set()
        assert over.wait(5)
        order.append("cancelled")

    canceller = threading.Thread(target=closing.cancel, args=[cancel])
    canceller.start()
    assert under_way.wait(5)
    closing.close(lambda: order.append("closed"))
    assert order == []
    over.set()
    canceller.join(5)
    assert order == ["cancelled", "closed"]


def test_nothing_is_cancelled_after_the_close_and_nothing_closed_twice() -> None:
    """A cancel that comes late finds no connection."""
    closing = Closing()
    order: list[str] = []
    for _ in range(2):
        closing.close(lambda: order.append("closed"))
    closing.cancel(lambda: order.append("cancelled"))
    assert order == ["closed"]


def test_a_cancel_that_fails_hinders_no_close() -> None:
    """The statement may just have ended."""
    closing = Closing()
    order: list[str] = []
    with pytest.raises(ZeroDivisionError):
        closing.cancel(lambda: 1 // 0)
    closing.close(lambda: order.append("closed"))
    assert order == ["closed"]
