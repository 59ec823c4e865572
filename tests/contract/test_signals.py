"""Signals that reach a main thread while it waits for a lock, whatever the driver does in C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.pace import promptly

from .house import House, until

# The database in memory is shared with no other process.
pytestmark = pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory)


class Program:
    """A process whose main thread holds a lock and waits for another, which the test holds."""

    def __init__(self, house: House, reaction: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.interrupted", house.url, reaction],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.hears("asks")
        if house.row.is_server:
            until(lambda: house.witness.waiters() == 1)

    def hears(self, event: str) -> float:
        """Return when it said that the event happened, which must be the next one."""
        assert self.process.stdout is not None
        said, at = self.process.stdout.readline().split()
        assert said == event
        return float(at)

    def interrupt(self) -> float:
        """Send the signal, and return when."""
        sent = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        return sent

    def let_go_on(self) -> None:
        """Let it take locks again, and end well."""
        self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0


@pytest.fixture
def program(house: House) -> Iterator[Callable[[str], Program]]:
    """What starts a program, which does not outlive the test."""
    started: list[Program] = []

    def start(reaction: str) -> Program:
        started.append(Program(house, reaction))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.mark.parametrize(
    ("reaction", "error"),
    [("default", "KeyboardInterrupt"), ("raises", "CalledAwayError"), ("times-out", "TimeoutError")],
)
def test_a_signal_ends_the_wait_of_a_main_thread(
    house: House, program: Callable[[str], Program], reaction: str, error: str
) -> None:
    """Within half a second, with nothing queued after two; it keeps what it held, and goes on."""
    holder = house.person()
    assert holder.acquire("k")
    waiting = program(reaction)
    sent = waiting.interrupt()
    assert promptly(waiting.hears(error) - sent, 0.5)
    until(lambda: house.witness.waiters() == 0)
    assert promptly(time.monotonic() - sent, 2)
    assert house.witness.holders() == 2
    holder.release()
    assert house.witness.holders() == 1
    waiting.let_go_on()


def test_a_program_that_ends_by_ctrl_c_leaves_nothing(house: House, program: Callable[[str], Program]) -> None:
    """Nothing is left that could still tell the server."""
    holder = house.person()
    assert holder.acquire("k")
    waiting = program("dies")
    sent = waiting.interrupt()
    assert promptly(waiting.hears("KeyboardInterrupt") - sent, 0.5)
    assert waiting.process.wait(60) == -signal.SIGINT
    until(lambda: house.witness.waiters() == 0)
    assert promptly(time.monotonic() - sent, 2)
    holder.release()
    assert house.witness.holders() == 0


def test_a_signal_handler_that_returns_runs_at_once_and_the_wait_goes_on(
    house: House, program: Callable[[str], Program]
) -> None:
    """A handler is not held up by the wait, and the wait keeps its place."""
    holder = house.person()
    assert holder.acquire("k")
    waiting = program("returns")
    sent = waiting.interrupt()
    assert promptly(waiting.hears("handled") - sent, 0.5)
    if house.row.is_server:
        assert house.witness.waiters() == 1
    holder.release()
    assert waiting.hears("holds")
    waiting.let_go_on()
