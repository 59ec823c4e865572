"""Openings that no server answers: left in time, few of them, and none lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import chain, repeat
from sqlite3 import ProgrammingError
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import create_engine, event

from dlock_core import LockConnectionError
from dlock_core.sessions.pool import Opener, open_session, private_pool
from dlock_core.sessions.workers import Workers

from .fake_server import until


class Silence:
    """A server that does not answer until the test lets it."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked = 0

    def __call__(self, _pool: object) -> Any:
        self.asked += 1
        assert self.answer.wait(10)
        return Mock()


@pytest.fixture
def silence() -> Any:
    """A silent server, which speaks at the end of the test."""
    silence = Silence()
    yield silence
    silence.answer.set()


def opener(silence: Silence, keep: Any) -> Opener:
    """Make what opens sessions on a silent server."""
    return Opener(create_engine("sqlite://"), silence, keep, Workers())


def test_an_opening_that_is_left_is_kept_when_it_is_answered_at_last(silence: Silence) -> None:
    """It is a session at the server, which no other knows."""
    kept: list[Any] = []
    with pytest.raises(LockConnectionError, match="has not answered within 0 s"):
        opener(silence, kept.append)(0.05)
    silence.answer.set()
    until(lambda: len(kept) == 1)


def test_an_answer_at_the_last_moment_is_taken_or_kept_and_never_both(
    silence: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two threads would use one session."""

    def out_of_time(openings: list[Any], timeout: float) -> None:
        assert timeout > 0
        wait(openings, timeout=10)
        openings[0].done = Mock(side_effect=chain([False], repeat(True)))

    monkeypatch.setattr("dlock_core.sessions.pool.wait", out_of_time)
    silence.answer.set()
    kept: list[Any] = []
    with pytest.raises(LockConnectionError, match="has not answered"):
        opener(silence, kept.append)(5)
    assert len(kept) == 1


def test_while_a_server_is_silent_openings_begin_one_at_a_time(silence: Silence) -> None:
    """A thread that waits for it cannot be ended, so there must not be one more for each call."""
    opened = opener(silence, Mock())
    with pytest.raises(LockConnectionError):
        opened(0.01)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(opened, 20)
        until(lambda: silence.asked == 2)
        later = [pool.submit(opened, 0.1) for _ in range(4)]
        assert all(isinstance(wait.exception(10), LockConnectionError) for wait in later)
        assert silence.asked == 2
        silence.answer.set()
        assert first.result(10)


def test_one_opening_that_is_answered_ends_the_restriction(silence: Silence) -> None:
    """The next ones begin at once."""
    opened = opener(silence, Mock())
    with pytest.raises(LockConnectionError):
        opened(0.01)
    silence.answer.set()
    until(lambda: not opened._unanswered)
    assert opened(5) is not opened(5)


def test_a_connection_of_which_no_session_can_be_made_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay open at the server, for as long as something refers to the error."""
    engine, opened = create_engine("sqlite://"), []
    event.listen(engine, "connect", lambda connection, _: opened.append(connection))
    refuse = Mock(side_effect=OSError("too many open files"))
    monkeypatch.setattr("dlock_core.sessions.session.duplicate_socket", refuse)
    with pytest.raises(OSError, match="too many open files"):
        open_session(engine, private_pool(engine), Mock(), None, label="", allow_unsafe=False)
    with pytest.raises(ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")
