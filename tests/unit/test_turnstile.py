"""The mutex in order of arrival: one inside, nobody overtakes, and nobody who left blocks the way."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy.util import greenlet_spawn

from dlock_core.contexts import BLOCKING, GREENLET, Blocking, Latch
from dlock_core.timeouts import Deadline
from dlock_core.turnstile import Turnstile

from .fake_server import until


class Scripted(Blocking):
    """One who waits as a test says: `meanwhile` runs in place of his wait."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.meanwhile = meanwhile

    def latch(self) -> Latch:
        return ScriptedLatch(self.meanwhile)


class ScriptedLatch:
    """A latch that counts how often it was set, heard or not."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None, *, hears: bool = True) -> None:
        self._meanwhile = meanwhile
        self._hears = hears
        self.woken = 0

    def set(self) -> bool:
        self.woken += 1
        return self._hears

    def wait(self, deadline: Deadline) -> bool:
        assert deadline.at is None
        self._meanwhile()
        return True


class Impatient(Blocking):
    """One whose wait an exception ends soon."""

    def latch(self) -> Latch:
        return ImpatientLatch(super().latch())


class ImpatientLatch:
    """The latch of such a one."""

    def __init__(self, latch: Latch) -> None:
        self.set = latch.set
        self._wait = latch.wait

    def wait(self, deadline: Deadline) -> bool:
        if not self._wait(Deadline(0.0002)):
            raise TimeoutError
        return True


def stop() -> None:
    """Be a signal handler that raises."""
    raise KeyboardInterrupt


@pytest.fixture
def gate() -> Turnstile:
    """A turnstile with somebody inside."""
    gate = Turnstile()
    assert gate.enter_if_free()
    return gate


def in_line(gate: Turnstile, count: int) -> None:
    """Wait until so many stand in line."""
    until(lambda: len(gate._line) == count)


def test_one_is_inside_at_a_time(gate: Turnstile) -> None:
    """Whoever looks while somebody is inside goes away; afterwards he may enter."""
    assert not gate.enter_if_free()
    gate.leave()
    assert gate.enter_if_free()


def test_the_line_is_served_in_the_order_of_arrival(gate: Turnstile) -> None:
    """Threads enter as they came, however the system wakes them."""
    entered = []

    def visit(number: int) -> None:
        gate.enter(BLOCKING)
        entered.append(number)
        gate.leave()

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(visit, number)
            in_line(gate, number + 1)
        gate.leave()
    assert entered == list(range(8))
    assert gate.enter_if_free()


def test_nobody_who_comes_now_overtakes_the_line(gate: Turnstile) -> None:
    """Whoever leaves hands his place to the first in line, who need not be awake yet."""
    tried = []

    def look_as_another_is_let_in() -> None:
        gate.leave()
        tried.append(gate.enter_if_free())

    gate.enter(Scripted(look_as_another_is_let_in))
    assert tried == [False]


def test_one_who_is_interrupted_in_line_leaves_it(gate: Turnstile) -> None:
    """His place goes to nobody; the one inside stays."""
    with pytest.raises(KeyboardInterrupt):
        gate.enter(Scripted(stop))
    assert not gate._line
    assert not gate.enter_if_free()
    gate.leave()
    assert gate.enter_if_free()


def test_one_who_is_interrupted_as_his_turn_comes_passes_it_on(gate: Turnstile) -> None:
    """He was let in and will never know: the next must not wait for him."""
    second = ScriptedLatch()

    def interrupted_too_late() -> None:
        gate._line.append(second)
        gate.leave()
        stop()

    with pytest.raises(KeyboardInterrupt):
        gate.enter(Scripted(interrupted_too_late))
    assert second.woken == 1
    assert not gate.enter_if_free()
    gate.leave()
    assert gate.enter_if_free()


def test_one_who_cannot_hear_is_passed_over(gate: Turnstile) -> None:
    """His loop is closed."""
    deaf, next_one = ScriptedLatch(hears=False), ScriptedLatch()
    gate._line.extend((deaf, next_one))
    gate.leave()
    assert (deaf.woken, next_one.woken) == (1, 1)
    assert not gate.enter_if_free()


def test_when_nobody_in_line_can_hear_the_way_is_free(gate: Turnstile) -> None:
    """The next who comes enters."""
    gate._line.append(ScriptedLatch(hears=False))
    gate.leave()
    assert gate.enter_if_free()


def test_tasks_enter_in_order_and_a_cancelled_one_is_passed_over(gate: Turnstile) -> None:
    """Cancelled before his turn, or in the moment of it."""
    entered = []

    async def visit(name: str) -> None:
        await greenlet_spawn(gate.enter, GREENLET)
        entered.append(name)
        gate.leave()

    async def main() -> None:
        tasks = [asyncio.create_task(visit(name)) for name in "abcd"]
        for _ in range(9):
            await asyncio.sleep(0)
        assert len(gate._line) == 4
        tasks[1].cancel()
        gate.leave()
        tasks[0].cancel()  # he has been let in, and has not run since
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert entered == ["c", "d"]
    assert gate.enter_if_free()


def test_many_threads_are_never_inside_at_once() -> None:
    """Some wait, some only look, some are interrupted in line."""
    gate = Turnstile()
    inside = threading.Lock()
    overlaps = []
    visits = []

    def visit(number: int) -> None:
        for _ in range(200):
            if number % 3:
                with suppress(TimeoutError):
                    gate.enter(Impatient() if number % 3 == 1 else BLOCKING)
                    body(number)
            elif gate.enter_if_free():
                body(number)

    def body(number: int) -> None:
        try:
            if not inside.acquire(blocking=False):
                overlaps.append(number)
                return
            time.sleep(0)
            inside.release()
            visits.append(number)
        finally:
            gate.leave()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(visit, range(6)))
    assert overlaps == []
    assert len(visits) >= 400
    assert gate.enter_if_free()
