"""Askers and sessions without a database: they never block, so a test decides what happens when."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

from dlock_core.coordination.contexts import Context
from dlock_core.coordination.state import Entries, Request, State, Ticket

if TYPE_CHECKING:
    from dlock_core.coordination.policy import Policy
    from dlock_core.dialects.base import Session
    from dlock_core.sessions.timeouts import Deadline


class RecordingLatch:
    """A latch that counts how often it was set."""

    def __init__(self, person: Person) -> None:
        self._person = person
        self.woken = 0

    def set(self) -> bool:
        self.woken += 1
        return not self._person.gone

    def wait(self, deadline: Deadline) -> bool:
        raise AssertionError("the bookkeeping itself must never wait")


class Person(Context):
    """A thread, or with `inside` a task that lives in the thread of another.

    Args:
        name: For the messages of failed tests.
        inside: The person in whose thread this one is a task.
        policy: The part of the process whose sessions this one can use.
    """

    def __init__(self, name: str, *, inside: Person | None = None, policy: str = "here") -> None:
        self.name = name
        self.policy = policy
        self.gone = False
        self.lives_in: threading.Thread = inside.lives_in if inside else threading.Thread(name=name)
        self.identity: object = self if inside else self.lives_in

    def __repr__(self) -> str:
        return self.name

    def owner(self) -> object:
        return self.identity

    def thread(self) -> threading.Thread:
        return self.lives_in

    def latch(self) -> RecordingLatch:
        return RecordingLatch(self)

    def ticket(self, key: str, *, shared: bool = False, once: bool = False, alone: bool = False) -> Ticket:
        """Make a ticket, as if it were made in this person's thread."""
        ticket = Ticket(Request(key, key, key, shared, alone), self, 0 if once else None)
        ticket.policy = cast("Policy", self.policy)
        return ticket

    def ask(
        self, entries: Entries, key: str, *, shared: bool = False, once: bool = False, alone: bool = False
    ) -> Ticket:
        """Ask for a key; a single try that fails at once is GONE."""
        ticket = self.ticket(key, shared=shared, once=once, alone=alone)
        entered = entries.ask(ticket)
        assert entered == (ticket.state is not State.GONE)
        return ticket

    def hold(
        self, entries: Entries, key: str, *, shared: bool = False, alone: bool = False, on: Session | None = None
    ) -> Ticket:
        """Ask for a key that is free here, and get it from the server."""
        ticket = self.ask(entries, key, shared=shared, alone=alone)
        assert entries.granted(ticket, on or session())
        return ticket


class BareSession:
    """A server session that has an identity, and lives until a test says otherwise."""

    def __init__(self) -> None:
        self.lives = True
        self.ended = False

    def alive(self) -> bool:
        return self.lives


def session() -> Session:
    """Make a session of which the bookkeeping only needs to know whether it lives."""
    return cast("Session", BareSession())


def hang_up(session: Session | None) -> None:
    """End a session at the server; the loss is not reported yet."""
    cast("BareSession", session).lives = False


def woken(ticket: Ticket) -> int:
    """Tell how often a queued asker was woken."""
    assert isinstance(ticket.latch, RecordingLatch)
    return ticket.latch.woken


class Clock:
    """Takes the place of the module `time`: it goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now
