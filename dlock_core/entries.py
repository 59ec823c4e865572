"""Who asks, who holds and who queues for a key in this process: pure bookkeeping, no I/O.

An Entry lives from the first asker of a key to the last. At most one of its askers, the head, is at
the server; everybody else of this process queues here, first come first served, each with a
deadline of his own. Nobody waits or talks to a server while the mutex is held.

    ask() ──► ASKING ──granted()──► HELD ──release()──► ENDING ──ended()──► GONE
      │          ▲  └──leave()────► GONE  ▲  └──lose()──► LOST
      └► QUEUED ─┘ promoted when the head leaves or the holder's unlock is answered
            ├──leave()──► GONE            │
            └── handed on by a release ───┘ within the holder's turn, without a statement

A turn is bounded, so that waiters of other processes get theirs, and it needs proof that the session
still lives: a lock handed on by memory alone after its session died would make a second holder.
"""

from __future__ import annotations

import threading
import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from .errors import DeadlockError, shown
from .tickets import Entry, Hold, State, Ticket

if TYPE_CHECKING:
    from collections.abc import Hashable

    from .contexts import Context
    from .dialects.base import Session

__all__ = ["Entries"]


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

    def ask(self, name: Hashable, ticket: Ticket, context: Context) -> bool:
        """Enter a ticket: it is ASKING, QUEUED or HELD afterwards; False when a single try fails at once.

        Raises:
            DeadlockError: The owner would wait for himself, directly or through others of this process.
        """
        with self._mutex:
            if self._closed:
                return False
            entry = self._entries.get(name)
            if entry is None:
                entry = self._entries[name] = Entry(name)
            ticket.entry = entry
            if self._own(entry, ticket):
                return self._refuse_own(ticket)
            if self._joins(entry, ticket):
                return True
            if not entry.queue and entry.admits(ticket):
                self._send(entry, ticket)
                return True
            if not ticket.once:
                self._refuse_cycle(ticket)
            elif not self._hopeful(entry, ticket):
                return False
            ticket.latch = context.latch()
            ticket.state = State.QUEUED
            entry.queue.append(ticket)
            self._awaited[ticket.owner] = ticket
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

        Also False when the session has ended since it said so: nobody would tell of that loss any more.
        """
        with self._mutex:
            if ticket.state is not State.ASKING or self._closed or session.ended:
                return False
            entry = ticket.entry
            until = time.monotonic() + self._turn_seconds
            hold = Hold(session, ticket.home, shared=ticket.shared, grants=self._turn_grants + 1, until=until)
            hold.take(ticket)
            entry.head = None
            entry.server_waits = False
            if entry.queue:
                self._join_from_queue(entry, hold)
                self._refuse_single_tries(entry, past_readers=ticket.shared)
                self._advance(entry)
            return True

    def leave(self, ticket: Ticket) -> State:
        """Stop asking or queueing, and tell from where; HELD must be released instead."""
        with self._mutex:
            before = ticket.state
            if before is State.QUEUED:
                ticket.entry.queue.remove(ticket)
                self._awaited.pop(ticket.owner, None)
            elif before is State.ASKING:
                ticket.entry.head = None
                ticket.entry.server_waits = False
            else:
                return before
            ticket.state = State.GONE
            self._advance(ticket.entry)
            return before

    def release(self, ticket: Ticket) -> State:
        """Stop holding. When the ticket is ENDING, the caller must unlock; GONE is done, LOST was lost."""
        with self._mutex:
            if ticket.state is not State.HELD:
                return State.LOST if ticket.state is State.LOST else State.GONE
            entry, hold = ticket.entry, ticket.hold
            assert hold is not None
            entry.holders.remove(ticket)
            hold.holders -= 1
            ticket.state = State.GONE
            if not hold.holders and not self._hand_on(entry, hold):
                entry.turn_over = bool(entry.queue)
                entry.ending += 1
                ticket.state = State.ENDING
            return ticket.state

    def ended(self, ticket: Ticket) -> None:
        """Note that the server's unlock is answered or the session is gone."""
        with self._mutex:
            if ticket.state is State.ENDING:
                ticket.state = State.GONE
                ticket.entry.ending -= 1
                self._advance(ticket.entry)

    def lose(self, session: Session) -> list[Ticket]:
        """Note that a session is dead: all that it held is lost at once."""
        with self._mutex:
            entries = list(self._entries.values())
            lost = [t for entry in entries for t in entry.holders if t.session is session]
            for ticket in lost:
                ticket.state = State.LOST
                ticket.entry.holders.remove(ticket)
                self._advance(ticket.entry)
            return lost

    def close(self) -> list[Ticket]:
        """Refuse all who queue or come, forget all who hold, and return these: their sessions end now."""
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
            return [ticket for entry in self._entries.values() for ticket in entry.holders]

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
        """Give the lock to the first of the queue without a statement."""
        while entry.queue and hold.takes(entry.queue[0]):
            if self._give(entry, hold):
                self._join_from_queue(entry, hold)
                return True
        return False

    def _join_from_queue(self, entry: Entry, hold: Hold) -> None:
        while hold.shared and entry.queue and hold.takes(entry.queue[0]):
            self._give(entry, hold)

    def _give(self, entry: Entry, hold: Hold) -> bool:
        ticket = entry.queue.popleft()
        hold.take(ticket)
        if self._wake(ticket, State.HELD):
            return True
        entry.holders.remove(ticket)
        hold.holders -= 1
        return False

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

    @staticmethod
    def _refuse_own(ticket: Ticket) -> bool:
        if ticket.once:
            return False
        raise DeadlockError(
            f"key {shown(ticket.key)}: this thread or task holds it already and would wait for itself; "
            "release it first, or call disown() on the lock that somebody else will release",
            key=ticket.key,
        )

    def _refuse_cycle(self, ticket: Ticket) -> None:
        if self._needs(ticket, ticket.owner):
            raise DeadlockError(
                f"key {shown(ticket.key)}: its holder waits for a key that this thread or task holds; "
                "take several keys in one order everywhere, for example sorted",
                key=ticket.key,
            )

    def _needs(self, ticket: Ticket, owner: object) -> bool:
        """Tell whether a waiter would wait for this owner or his thread, directly or through others."""
        visited = {ticket}
        unvisited = [ticket]
        while unvisited:
            for holder in self._needed(unvisited.pop()):
                for stopped in (holder.owner, holder.thread):
                    if stopped is owner and stopped is not None:
                        return True
                    further = self._awaited.get(stopped)
                    if further is not None and further not in visited:
                        visited.add(further)
                        unvisited.append(further)
        return False

    @staticmethod
    def _needed(ticket: Ticket) -> list[Ticket]:
        """Return the holders who must release before a waiter gets the lock."""
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
        """Send the first of the queue to the server when it may go; drop the entry when nobody is left."""
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
        ticket.polite, entry.turn_over = entry.turn_over, False
        entry.head = ticket

    def _wake(self, ticket: Ticket, state: State) -> bool:
        """Tell a queued asker what he was given; False when he can no longer hear it."""
        self._awaited.pop(ticket.owner, None)
        ticket.state = state
        if ticket.latch is not None and ticket.latch.set():
            return True
        ticket.state = State.GONE
        return False
