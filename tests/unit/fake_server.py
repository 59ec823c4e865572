"""A server of locks in this process, whose sessions report their misuse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy.exc import DBAPIError

from dlock_core import LockConnectionError


def cancelled() -> DBAPIError:
    """Make the error of a statement that another session cancelled at the server."""
    return DBAPIError("SELECT", {}, Exception("canceling statement due to user request"))


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds; fail after ten seconds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.001)


class FakeSession:
    """One session: it can be cut off, by the server or by `end` and `interrupt`."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.fresh = True
        self.waits = False
        self.cut = False
        self.ended = self.silent = False
        self.waiter: object = None
        self.parked = False
        self._in_use = threading.Lock()

    @contextmanager
    def _statement(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            self.server.mistakes.append("two borrowers use one session at a time")
        try:
            with self.server.changed:
                self._check()
                yield
        finally:
            self._in_use.release()

    def _check(self) -> None:
        if self.cut:
            raise LockConnectionError("the session is gone")

    def acquire(
        self, name: str, *, shared: bool, timeout: float | None, label: str | None, again: bool = False
    ) -> bool:
        with self._statement():
            if self.server.refusal is not None:
                raise self.server.refusal
            self.fresh = False
            if again:
                self.server.holders[name].pop(self)
                self.server.changed.notify_all()
            if name in self.held:
                self.server.mistakes.append(f"{name} is asked for on the session that holds it")
            self.waits = timeout != 0
            try:
                free = self.server.changed.wait_for(lambda: self.cut or self.server.admits(name, shared), timeout)
            finally:
                self.waits = False
            self._check()
            if self.server.cancels_before_grant:
                raise cancelled()
            if free:
                self.server.holders.setdefault(name, {})[self] = shared
            if self.server.cancels_after_grant:
                raise cancelled()
            return free

    def release(self, name: str, *, shared: bool) -> bool:
        with self._statement():
            held = self.server.holders.get(name, {}).pop(self, None) is shared
            self.server.changed.notify_all()
            if self.server.unlocks_to_fail:
                self.server.unlocks_to_fail -= 1
                raise cancelled()
            return held

    def holds(self, name: str, *, shared: bool) -> bool:
        with self._statement():
            return self.server.holders.get(name, {}).get(self) is shared

    def next_token(self, name: str) -> int:
        with self._statement():
            self.server.tokens += 1
            return self.server.tokens

    def alive(self) -> bool:
        return not self.cut

    def expired(self) -> bool:
        return False

    def hang_up(self) -> None:
        """End the session at the server; our side has yet to notice."""
        with self.server.changed:
            self.cut = True
            for holders in self.server.holders.values():
                holders.pop(self, None)
            self.server.changed.notify_all()

    def end(self) -> None:
        self.ended = True
        self.hang_up()

    def interrupt(self, waiter: object = None) -> None:
        if self.waits and waiter in (None, self.waiter):
            self.hang_up()

    def park(self) -> None:
        self.parked = True

    @property
    def held(self) -> set[str]:
        """The locks that the server has noted for this session."""
        return {name for name, holders in self.server.holders.items() if self in holders}


class FakeServer:
    """Grants locks, and notes what was wrong."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.holders: dict[str, dict[FakeSession, bool]] = {}
        self.sessions: list[FakeSession] = []
        self.mistakes: list[str] = []
        self.tokens = 0
        self.cancels_before_grant = self.cancels_after_grant = False
        self.unlocks_to_fail = 0
        self.refusal: BaseException | None = None

    def open(self) -> FakeSession:
        """Open a session."""
        session = FakeSession(self)
        self.sessions.append(session)
        return session

    def admits(self, name: str, shared: bool) -> bool:
        """Tell whether a lock is free for one that comes now."""
        return all(shared and held_shared for held_shared in self.holders.get(name, {}).values())

    def answers(self, ask: Callable[[], object], *, granted: bool, unlocks: int) -> None:
        """Let an ask end in an error that is an answer, and so many unlocks after it."""
        self.cancels_before_grant, self.cancels_after_grant = not granted, granted
        try:
            with self.failing_unlocks(unlocks), pytest.raises(DBAPIError):
                ask()
        finally:
            self.cancels_before_grant = self.cancels_after_grant = False

    @contextmanager
    def failing_unlocks(self, number: int) -> Iterator[None]:
        """Answer so many unlocks with an error, which do their work all the same."""
        self.unlocks_to_fail = number
        yield
        self.unlocks_to_fail = 0

    @contextmanager
    def refusing(self, error: BaseException) -> Iterator[None]:
        """Answer every question with this error."""
        self.refusal = error
        yield
        self.refusal = None

    @property
    def living(self) -> list[FakeSession]:
        """The sessions that have not been ended, in the order of opening."""
        return [session for session in self.sessions if not session.cut]

    def take(self, *names: str) -> FakeSession:
        """Hold some locks in another process."""
        stranger = FakeSession(self)
        for name in names:
            assert stranger.acquire(name, shared=False, timeout=0, label=None)
        return stranger
