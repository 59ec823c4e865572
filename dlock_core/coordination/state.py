"""The bookkeeping of one provider: what waits for, holds and gives back which key here; it asks no server."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from enum import Enum, auto
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DeadlockError, shown
from ..sessions.timeouts import Deadline

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Hashable
    from weakref import ref

    from ..dialects.base import Session
    from ..keys import Key
    from .contexts import Context, Latch
    from .policy import Place, Policy

__all__ = ["Entries", "Entry", "Hold", "Request", "State", "Ticket"]


# Why a wait could never end, and what to do.
OWN = (
    "this thread or task holds it already and would wait for itself; "
    "release it first, or call disown() on the lock that another thread or task will release"
)
CYCLE = (
    "its holder waits for a key that this thread or task holds; "
    "take several keys in one order everywhere, for example sorted"
)


class Request(NamedTuple):
    """The user's key, the server's name for it, what people read, and how it is wanted."""

    key: Key
    name: int | str
    label: str
    shared: bool
    fencing: bool = False


class State(Enum):
    """Where one acquisition stands."""

    QUEUED = auto()
    ASKING = auto()
    PASSED = auto()
    """It holds what it must put back first, for those who wait at the server."""
    HELD = auto()
    ENDING = auto()
    LOST = auto()
    GONE = auto()


class Hold:
    """A lock at the server, and the turn in which this process hands it on.

    Args:
        session: The session that holds it.
        ticket: Which the server granted it.
        grants: How often it may still be handed on.
        until: When the turn ends, on the monotonic clock.
    """

    __slots__ = ("grants", "holders", "place", "policy", "session", "shared", "until")

    def __init__(self, session: Session, ticket: Ticket, *, grants: int, until: float) -> None:
        self.session = session
        self.place = ticket.place
        self.policy = ticket.policy
        self.shared = ticket.shared
        self.grants = grants
        self.until = until
        self.holders = 0

    def takes(self, ticket: Ticket) -> bool:
        """Tell whether this ticket may hold it without a word to the server."""
        return self.grants > 0 and not ticket.request.fencing and time.monotonic() < self.until and self._suits(ticket)

    def passes(self, ticket: Ticket) -> bool:
        """Tell whether this ticket may put the lock back and wait for it anew on the same session."""
        return self.place is not None and self.place.spare and self._suits(ticket)

    def _suits(self, ticket: Ticket) -> bool:
        return self.shared is ticket.shared and self.policy is ticket.policy and self.session.alive()

    def take(self, ticket: Ticket, state: State = State.HELD) -> None:
        """Let a ticket hold it."""
        self.holders += 1
        self.grants -= 1
        ticket.hold = self
        ticket.session = self.session
        ticket.place = self.place
        ticket.state = state
        ticket.entry.holders.append(ticket)


class Ticket:
    """One acquisition: the request, where it waits and until when, and what came of it.

    Args:
        request: What is asked for, and how.
        context: Where the asker waits; later where the releaser does.
        timeout: Seconds; None is no limit, 0 one try.
        owner: What asks; by default the context's thread or task.
    """

    policy: Policy
    """The sessions that it can use."""
    loop: AbstractEventLoop | None = None
    """The event loop that the driver needs."""
    lock: ref[Any] | None = None
    """The lock object, which hears of a loss while it lives."""
    entry: Entry
    latch: Latch | None = None
    """What it waits on in the queue."""
    place: Place | None = None
    """Where it asks or holds: a session, among those of its policy."""
    session: Session | None = None
    hold: Hold | None = None
    token: int | None = None
    state = State.GONE
    yields = False
    """A turn of this process is over: others may go first."""
    again = False
    """The lock was passed to it, and it has not put it back yet."""
    withdrawn = False
    """Called off from elsewhere before it was granted; its session is not used again."""

    def __init__(self, request: Request, context: Context, timeout: float | None, owner: object = None) -> None:
        self.request = request
        self.context = context
        self.deadline = Deadline(timeout)
        self.shared = request.shared
        self.once = timeout == 0
        self.owner: object = context.owner() if owner is None else owner
        self.asker = self.owner
        # A blocking wait stops every task of its thread, so it must be known which live there.
        self.thread: threading.Thread | None = context.thread()
        self.pid = os.getpid()

    @property
    def key(self) -> Key:
        """The user's key, for messages."""
        return self.request.key

    def lock_object(self) -> Any:
        """Return the lock object, None when it is garbage or has no interest in a loss."""
        return None if self.lock is None else self.lock()

    def disown(self) -> None:
        """Forget the owner: another one will release. A finaliser may call it."""
        self.owner = self.thread = None

    def interrupt(self) -> None:
        """Interrupt its wait at the server, if it waits there."""
        if (session := self.session) is not None:
            session.interrupt(self)


class Entry:
    """One key in this process."""

    __slots__ = ("ending", "head", "holders", "name", "queue", "server_waits", "turn_over")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.head: Ticket | None = None
        self.holders: list[Ticket] = []
        self.queue: deque[Ticket] = deque()
        self.ending = 0
        self.server_waits = False
        self.turn_over = False

    def admits(self, ticket: Ticket) -> bool:
        """Tell whether this ticket may go to the server now."""
        if self.head is not None or self.ending:
            return False
        return not self.holders or (ticket.shared and self.holders[0].shared)


class Entries:
    """All keys of one provider in this process.

    Args:
        turn_grants: How often a lock is handed on in memory before the server is asked again; 0 never.
        turn_seconds: How long a turn lasts at most, from the server's answer.
    """

    def __init__(self, *, turn_grants: int = 64, turn_seconds: float = 0.02) -> None:
        self._turn_grants = turn_grants
        self._turn_seconds = turn_seconds
        self._mutex = threading.Lock()
        self._closed = False
        self._entries: dict[Hashable, Entry] = {}
        self._awaited: dict[object, Ticket] = {}

    def ask(self, ticket: Ticket) -> bool:
        """Enter a ticket: it is ASKING, QUEUED or HELD afterwards; False when a single try fails at once.

        Raises:
            DeadlockError: The owner would wait for itself, directly or through others of this process.
        """
        with self._mutex:
            if self._closed:
                return False
            name = ticket.request.name
            entry = self._entries.get(name)
            if entry is None:
                ticket.entry = self._entries[name] = Entry(name)
                self._send(ticket.entry, ticket)
                return True
            ticket.entry = entry
            if self._own(entry, ticket):
                if ticket.once:
                    return False
                raise _deadlock(ticket, OWN)
            if self._joins(entry, ticket):
                return True
            if not entry.queue and entry.admits(ticket):
                self._send(entry, ticket)
            elif ticket.once and not self._hopeful(entry, ticket):
                return False
            elif not ticket.once and self._needs(ticket, ticket.owner):
                raise _deadlock(ticket, CYCLE)
            else:
                ticket.latch = ticket.context.latch()
                ticket.state = State.QUEUED
                entry.queue.append(ticket)
                self._awaited[ticket.asker] = ticket
            return True

    def waiting(self, ticket: Ticket) -> bool:
        """Note that the head's single try failed and it now waits; False when its asker has left."""
        with self._mutex:
            if ticket.state is not State.ASKING:
                return False
            ticket.entry.server_waits = True
            self._refuse_single_tries(ticket.entry)
            return True

    def granted(self, ticket: Ticket, session: Session) -> bool:
        """Note the server's yes; False when the asker has left, and the lock must be given back.

        Also False when the session has ended since it said so: no loss would be reported any more.
        """
        with self._mutex:
            if ticket.state is not State.ASKING or self._closed or session.ended:
                return False
            entry = ticket.entry
            until = time.monotonic() + self._turn_seconds
            hold = Hold(session, ticket, grants=self._turn_grants + 1, until=until)
            hold.take(ticket)
            entry.head = None
            entry.server_waits = False
            if entry.queue:
                self._hand_on(entry, hold)
                self._refuse_single_tries(entry, past_readers=ticket.shared)
                self._advance(entry)
            return True

    def leave(self, ticket: Ticket, *, withdrawn: bool = False) -> State:
        """Stop asking or queueing, and tell from where; HELD and PASSED must be released instead."""
        with self._mutex:
            before = ticket.state
            if before is State.QUEUED:
                ticket.entry.queue.remove(ticket)
                self._stop_waiting(ticket)
            elif before is State.ASKING:
                ticket.entry.head = None
                ticket.entry.server_waits = False
            else:
                ticket.withdrawn = ticket.withdrawn or (withdrawn and before is State.PASSED)
                return before
            ticket.state = State.GONE
            ticket.withdrawn = withdrawn
            self._advance(ticket.entry)
            return before

    def release(self, ticket: Ticket) -> State:
        """Stop holding. When the ticket is ENDING, the caller must unlock; GONE is done, LOST was lost."""
        with self._mutex:
            if ticket.state not in (State.HELD, State.PASSED):
                return State.LOST if ticket.state is State.LOST else State.GONE
            entry, hold = ticket.entry, ticket.hold
            assert hold is not None
            self._drop(entry, hold, ticket)
            ticket.state = State.GONE
            if not (hold.holders or self._hand_on(entry, hold) or self._pass_on(entry, hold)):
                entry.turn_over = bool(entry.queue)
                entry.ending += 1
                ticket.state = State.ENDING
            return ticket.state

    def put_back(self, ticket: Ticket) -> bool:
        """Note that one to which a lock was passed asks for it anew; False when it was lost or called off."""
        with self._mutex:
            if ticket.state is not State.PASSED or ticket.withdrawn or ticket.hold is None:
                return False
            entry = ticket.entry
            self._drop(entry, ticket.hold, ticket)
            ticket.hold, ticket.again = None, False
            ticket.state = State.ASKING
            entry.head, entry.server_waits = ticket, True
            self._refuse_single_tries(entry)
            return True

    def ended(self, ticket: Ticket) -> None:
        """Note that the server's unlock is answered or the session is gone."""
        with self._mutex:
            if ticket.state is State.ENDING:
                ticket.state = State.GONE
                ticket.entry.ending -= 1
                self._advance(ticket.entry)

    def lose(self, session: Session) -> list[tuple[Ticket, Any]]:
        """Note that a session is dead: all that it held is lost at once. Return that, with the lock objects.

        Those may become garbage as soon as their users can see the loss.
        """
        with self._mutex:
            entries = list(self._entries.values())
            lost = [(t, t.lock_object()) for entry in entries for t in entry.holders if t.session is session]
            for ticket, _ in lost:
                ticket.state = State.LOST
                ticket.entry.holders.remove(ticket)
                self._advance(ticket.entry)
            return lost

    def close(self) -> list[Ticket]:
        """Refuse all that queue or come, forget all that hold, and return these: their sessions end now."""
        with self._mutex:
            self._closed = True
            held = []
            for entry in list(self._entries.values()):
                while entry.queue:
                    self._wake(entry.queue.popleft(), State.GONE)
                for ticket in entry.holders:
                    ticket.state = State.LOST
                held += entry.holders
                entry.holders.clear()
                self._advance(entry)
            return held

    def held(self) -> list[Ticket]:
        """Return the tickets that hold a lock now."""
        with self._mutex:
            return [t for entry in self._entries.values() for t in entry.holders if t.state is State.HELD]

    def held_since(self, moment: float) -> list[Ticket]:
        """Return the tickets that hold a lock which the server granted before a moment of the monotonic clock."""
        latest = moment + self._turn_seconds
        return [ticket for ticket in self.held() if ticket.hold is not None and ticket.hold.until < latest]

    def keys(self) -> dict[Any, Any]:
        """Return the user's keys of all names that are held or asked for here."""
        with self._mutex:
            return {
                ticket.entry.name: ticket.key
                for entry in self._entries.values()
                for ticket in (*entry.queue, *entry.holders, *([entry.head] if entry.head else ()))
            }

    # What follows runs under the mutex.

    @staticmethod
    def _joins(entry: Entry, ticket: Ticket) -> bool:
        """Let a reader join the readers of this process, within their turn and past no queue."""
        if entry.queue or not ticket.shared or not entry.holders:
            return False
        hold = entry.holders[-1].hold
        if hold is None or not hold.takes(ticket):
            return False
        hold.take(ticket)
        return True

    def _hand_on(self, entry: Entry, hold: Hold) -> bool:
        """Give the lock to the first of the queue without a statement, and then to readers if it is shared."""
        while entry.queue and (hold.shared or not hold.holders) and hold.takes(entry.queue[0]):
            ticket = entry.queue.popleft()
            hold.take(ticket)
            if not self._wake(ticket, State.HELD):
                self._drop(entry, hold, ticket)
        return hold.holders > 0

    def _pass_on(self, entry: Entry, hold: Hold) -> bool:
        """Let the first of the queue put the lock back, since our turn is over, and wait at the server at once.

        One statement does both: no moment is left in which another process could take the lock twice.
        """
        while entry.queue and hold.passes(entry.queue[0]):
            ticket = entry.queue.popleft()
            hold.take(ticket, State.PASSED)
            ticket.again = True
            if self._wake(ticket, State.PASSED):
                return True
            self._drop(entry, hold, ticket)
        return False

    @staticmethod
    def _drop(entry: Entry, hold: Hold, ticket: Ticket) -> None:
        entry.holders.remove(ticket)
        hold.holders -= 1

    @staticmethod
    def _own(entry: Entry, ticket: Ticket) -> bool:
        owner, thread = ticket.owner, ticket.thread
        for holder in entry.holders:
            if holder.owner is owner and owner is not None:
                return True
        if owner is not thread:
            return False
        # A blocking wait would stop the tasks of its thread, too. Plain loops, since a queue may be long.
        for other in chain(entry.holders, entry.queue):
            if other.thread is thread:
                return True
        return entry.head is not None and entry.head.thread is thread

    def _needs(self, ticket: Ticket, owner: object) -> bool:
        """Tell whether a waiter would wait for this owner or its thread, directly or through others."""
        visited = {ticket}
        unvisited = [ticket]
        while unvisited:
            for holder in self._needed(unvisited.pop()):
                for stopped in (holder.owner, holder.thread):
                    if stopped is owner and stopped is not None:
                        return True
                    further = self._awaited.get(stopped)
                    # One that was disowned while it waits is on its way out.
                    if further is not None and further.owner is stopped and further not in visited:
                        visited.add(further)
                        unvisited.append(further)
        return False

    @staticmethod
    def _needed(ticket: Ticket) -> list[Ticket]:
        """Return the holders that must release before a waiter gets the lock."""
        entry = ticket.entry
        if ticket.once:
            return []  # it waits for an answer that is on its way
        if not entry.holders or not (entry.holders[0].shared and ticket.shared):
            return entry.holders
        for queued in entry.queue:
            if queued is ticket:
                break
            if not (queued.shared or queued.once):
                return entry.holders
        return []

    @staticmethod
    def _hopeful(entry: Entry, ticket: Ticket) -> bool:
        """Tell whether a single try may wait for an answer that is already on its way."""
        if entry.holders:
            readers = ticket.shared and entry.holders[0].shared
            if not readers or not all(queued.shared for queued in entry.queue):
                return False
        return not entry.server_waits

    def _refuse_single_tries(self, entry: Entry, *, past_readers: bool = False) -> None:
        """Answer the queued single tries; readers in front of every writer may still join readers."""
        for ticket in list(entry.queue):
            if ticket.once and not (past_readers and ticket.shared):
                entry.queue.remove(ticket)
                self._wake(ticket, State.GONE)
            elif not ticket.once:
                past_readers = past_readers and ticket.shared

    def _advance(self, entry: Entry) -> None:
        """Send the first of the queue to the server when it may go; drop the entry when it is empty."""
        while entry.queue and entry.admits(entry.queue[0]):
            ticket = entry.queue.popleft()
            self._send(entry, ticket)
            if self._wake(ticket, State.ASKING):
                return
            entry.head = None
        if not (entry.queue or entry.head or entry.holders or entry.ending):
            self._entries.pop(entry.name, None)

    @staticmethod
    def _send(entry: Entry, ticket: Ticket) -> None:
        ticket.state = State.ASKING
        ticket.yields, entry.turn_over = entry.turn_over, False
        entry.head = ticket

    def _wake(self, ticket: Ticket, state: State) -> bool:
        """Wake a queued ticket with its new state; False when its waiter cannot wake any more."""
        self._stop_waiting(ticket)
        ticket.state = state
        if ticket.latch is not None and ticket.latch.set():
            return True
        ticket.state = State.GONE
        return False

    def _stop_waiting(self, ticket: Ticket) -> None:
        if self._awaited.get(ticket.asker) is ticket:  # else the same asker waits for another one by now
            del self._awaited[ticket.asker]


def _deadlock(ticket: Ticket, why: str) -> DeadlockError:
    return DeadlockError(f"key {shown(ticket.key)}: {why}", key=ticket.key)
