"""Which server session takes which lock: all on one, one for each owner, or one for each lock.

A policy serves one part of a process, which can use its sessions: the threads, or one event loop. Whatever
the server grants, it reports at once to the bookkeeping; when that says that the asker has left meanwhile, it
gives the lock straight back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from ..dialects.failures import answered, connection_lost, first_line
from ..errors import DeadlockError, LockConnectionError, UnsupportedError
from ..sessions.timeouts import FOR_EVER, Deadline, patience
from .state import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..dialects.base import Session
    from ..sessions.pool import SessionPool
    from .contexts import Latch
    from .state import Entries, Ticket

__all__ = ["ANSWERS", "POLL_LAST", "Gate", "LoopGate", "Place", "Policy", "Sharing"]

log = logging.getLogger("dlock")

# Pauses between tries where the server does not queue, or no session is left to wait on; in seconds.
POLL_FIRST, POLL_LAST = 0.001, 0.01
# How often an unlock is repeated that the server answers with an error, such as a cancel that was meant for the wait.
UNLOCKS = 10
# Errors that are the server's own answer: nothing was granted.
ANSWERS = (DeadlockError, UnsupportedError)


class Gate:
    """A mutex for threads."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock: Any = threading.Lock()

    def enter(self, deadline: Deadline) -> None:
        """Take it, with some patience beyond the deadline.

        Raises:
            LockConnectionError: It was not free in time.
        """
        if not (self._lock.acquire(blocking=False) or self._lock.acquire(timeout=patience(deadline))):
            raise _too_late(deadline)

    def leave(self) -> None:
        """Free it."""
        self._lock.release()

    @property
    def free(self) -> bool:
        """Whether nothing has it and nothing waits for it, so that `enter` would not wait."""
        return not self._lock.locked()


class LoopGate(Gate):
    """For the tasks of one event loop, in SQLAlchemy's greenlets; first come, first served."""

    __slots__ = ("_users",)

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._users = 0  # the lock itself is unlocked while the next one of its queue is on the way

    def enter(self, deadline: Deadline) -> None:
        self._users += 1
        try:
            await_only(self._enter(deadline))
        except BaseException:
            self._users -= 1
            raise

    async def _enter(self, deadline: Deadline) -> None:
        try:
            async with asyncio.timeout(patience(deadline) if self._users > 1 else None):
                await self._lock.acquire()
        except TimeoutError:
            raise _too_late(deadline) from None

    def leave(self) -> None:
        self._users -= 1
        self._lock.release()

    @property
    def free(self) -> bool:
        return not self._users


def _too_late(deadline: Deadline) -> LockConnectionError:
    return LockConnectionError(
        f"another statement on the same lock session has kept the database busy for {deadline.waited:.0f} s"
    )


class Sharing(Enum):
    """Which locks share a session."""

    ALL = auto()
    """All, and it never waits; a wait has a session of its own, up to the pool's limit."""
    OWNER = auto()
    """Those of one owner, which also waits there, so that the server sees every circle of waits."""
    NONE = auto()
    """None: sessions cost nothing, and the server does not queue."""


class Place:
    """A session, the mutex around it, and what is held there.

    Args:
        gate: Lets one statement in at a time.
        session: It; by default the first statement opens it.
        owner: Whose locks these are, where each owner has a place.
        kept: It is not given back when nothing uses it.
        spare: It is for one lock at a time, so that a wait keeps no other statement waiting.
    """

    __slots__ = ("gate", "held", "kept", "owner", "reusable", "session", "spare", "users")

    def __init__(
        self,
        gate: Gate,
        session: Session | None = None,
        *,
        owner: object = None,
        kept: bool = False,
        spare: bool = False,
    ) -> None:
        self.gate = gate
        self.session = session
        self.owner = owner
        self.kept = kept
        self.spare = spare
        self.held: dict[object, Ticket] = {}
        self.users = 0
        """How many tickets and statements use it."""
        self.reusable = True

    def serves(self, ticket: Ticket, *, waits: bool) -> bool:
        """Tell whether its owner may ask here.

        Not for a name that the session holds, since the server would count a second hold; and no wait beside a lock
        that was disowned, since its release would have to wait for the end of that wait.
        """
        if (self.session is not None and self.session.ended) or ticket.request.name in self.held:
            return False
        return not (waits and any(held.owner is not self.owner for held in self.held.values()))


class Policy:
    """Asks, waits and unlocks on the sessions of one part of a process.

    Args:
        pool: Opens and keeps the sessions.
        entries: The bookkeeping, which hears of each grant, and says when its asker has left.
        show: Makes the name of a session that asks for a key.
        sharing: Which locks share a session.
        gate: Makes a mutex for the threads or tasks that use these sessions.
    """

    def __init__(
        self,
        pool: SessionPool,
        entries: Entries,
        show: Callable[[str], str],
        sharing: Sharing,
        gate: Callable[[], Gate] = Gate,
    ) -> None:
        self.pool = pool
        self._entries = entries
        self._show = show
        self._sharing = sharing
        self._gate = gate
        self._mutex = threading.Lock()
        self._shared: Place | None = None
        self._owned: dict[object, Place] = {}
        self._line: OrderedDict[Ticket, Latch | None] = OrderedDict()

    def attempt(self, ticket: Ticket) -> bool:
        """Try once."""
        while True:
            place = self._shared
            if self._sharing is not Sharing.ALL:
                place = self._own_place(ticket, waits=False)
            elif place is None or (place.session is not None and place.session.ended):
                place = self._new_shared()
            if place.kept and ticket.request.name in place.held:
                # Readers of ours hold it there: the same session would be let in past a queued writer.
                granted = self._try_elsewhere(ticket)
            else:
                self._enter(place, ticket)
                ask = partial(self._ask, place, ticket, waits=False)
                granted = ticket.context.inner.shield(ask) if place.held else ask()
            if granted is not None:
                return granted

    def wait(self, ticket: Ticket) -> bool:
        """Wait for the lock; False may come before the deadline."""
        if self._sharing is Sharing.NONE:
            ticket.context.inner.pause(_step(ticket.deadline, POLL_LAST))
            return self.attempt(ticket)
        place = self._spare(ticket) if self._sharing is Sharing.ALL else self._own_place(ticket, waits=True)
        if place is None:
            return self._poll(ticket)
        self._enter(place, ticket)
        granted = ticket.context.inner.wait_apart(partial(self._ask, place, ticket, waits=True), ticket.interrupt)
        if granted is None:
            self.settle(ticket, reusable=False)
        return granted is True

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        """Take back what a refused asker or a releaser used; what is in doubt is ended already."""
        if ticket in self._line:
            self._leave_line(ticket)
        place, ticket.place = ticket.place, None
        if place is not None:
            self._leave(place, reusable=reusable)

    def unlock(self, ticket: Ticket) -> bool:
        """Unlock; False when the server says that the session did not hold it."""
        place = ticket.place
        assert place is not None
        if len(place.held) == 1 and place.gate.free:  # nothing else is at stake
            return self._unlock(place, ticket)
        return ticket.context.inner.shield(partial(self._unlock, place, ticket))

    def holds(self, ticket: Ticket) -> bool:
        """Ask whether a ticket's session holds its lock, uninterrupted; one that does not, or is in doubt, ends."""
        place, session = ticket.place, ticket.session
        if place is None or session is None:
            return False
        sound = True
        place.gate.enter(Deadline(0))
        try:
            if ticket.state is not State.HELD:
                return False
            sound = False
            sound = session.holds(ticket.request.name, shared=ticket.shared)
        except DBAPIError as error:
            sound = not connection_lost(error)  # else it is an answer, though none to the question
            raise
        finally:
            place.gate.leave()
            if not sound:
                self.pool.end(session)
        return sound

    # Which place.

    def _new_shared(self) -> Place:
        """Return the place of all; the first to enter opens its session, while holders on the last one go on."""
        with self._mutex:
            place = self._shared
            if place is None or (place.session is not None and place.session.ended):
                place = self._shared = Place(self._gate(), kept=True)
            return place

    def _own_place(self, ticket: Ticket, *, waits: bool) -> Place:
        """Return the place of a ticket, or of its owner, or a new one where that does not serve it."""
        before = ticket.place
        # Read once: another thread may disown it meanwhile. Then its asker has left, and never comes back to the place.
        owner = ticket.owner if self._sharing is Sharing.OWNER else None
        with self._mutex:
            for place in (before, self._owned.get(owner)):
                if place is not None and place.serves(ticket, waits=waits):
                    break
            else:
                place = Place(self._gate(), owner=owner)
                if owner is not None:
                    self._owned[owner] = place
            if place is before:
                return place
            place.users += 1
        ticket.place = place
        if before is not None:
            self._leave(before)
        return place

    def _spare(self, ticket: Ticket) -> Place | None:
        """Return a place of a ticket's own, unless another one is first in line for it, or the limit is reached."""
        if ticket.place is None:
            with self._mutex:
                if self._line and next(iter(self._line)) is not ticket:
                    return None
            session = self.pool.take(patience(ticket.deadline), within_limit=True)
            if session is None:
                return None
            self._leave_line(ticket)
            ticket.place = Place(self._gate(), session, spare=True)
            ticket.place.users = 1
        return ticket.place

    def _enter(self, place: Place, ticket: Ticket) -> None:
        """Enter the gate of a place, which the statement uses until `_ask` leaves it."""
        if not place.kept:
            with self._mutex:
                place.users += 1
        try:
            place.gate.enter(ticket.deadline)
        except BaseException:
            self._leave(place)
            raise

    def _leave(self, place: Place, *, reusable: bool = True) -> None:
        if place.kept:
            return
        with self._mutex:
            place.users -= 1
            place.reusable = place.reusable and reusable
            if place.users > 0:
                return
            if self._owned.get(place.owner) is place:
                del self._owned[place.owner]
        if place.session is not None:
            (self.pool.give if place.reusable else self.pool.end)(place.session)
        if self._line:
            self._wake_first()

    # The line for spare places.

    def _poll(self, ticket: Ticket) -> bool:
        """Pause, until a session is free to wait on at best, then try on the shared one."""
        latch = ticket.context.inner.latch()
        with self._mutex:
            self._line[ticket] = latch
            pause = _step(ticket.deadline, max(POLL_LAST, len(self._line) * POLL_FIRST))
        granted = True
        try:
            latch.wait(Deadline(pause))
            granted = self.attempt(ticket)
            return granted
        finally:
            if granted:  # or called away, whatever has become of the ticket meanwhile
                self._leave_line(ticket)

    def _leave_line(self, ticket: Ticket) -> None:
        with self._mutex:
            self._line.pop(ticket, None)

    def _wake_first(self) -> None:
        with self._mutex:
            for ticket, latch in self._line.items():
                if latch is not None:
                    latch.set()
                    self._line[ticket] = None
                return

    # What is said to the server.

    def _try_elsewhere(self, ticket: Ticket) -> bool | None:
        place = self._spare(ticket)
        if place is None:
            return False
        granted: bool | None = False
        self._enter(place, ticket)
        try:
            granted = self._ask(place, ticket, waits=False)
        finally:
            if not granted:
                self.settle(ticket, reusable=True)
        return granted

    def _ask(self, place: Place, ticket: Ticket, *, waits: bool) -> bool | None:  # noqa: C901, PLR0912 - the hot path
        """Ask in a place whose gate is ours, and leave it; None when the caller must look for another place.

        Without a grant the session is sound afterwards and holds nothing more, or has ended.
        """
        request, session, fresh, again = ticket.request, place.session, True, ticket.again
        try:
            if again:
                if not self._entries.put_back(ticket):
                    return ticket.state is State.LOST  # which it learns as any other holder
                place.held.pop(request.name, None)
            elif ticket.state is not State.ASKING:
                return False  # no session is opened for an asker that has left
            if request.name in place.held or (session is not None and session.ended):
                return None
            if session is None:
                session = place.session = self.pool.take(patience(ticket.deadline))
                assert session is not None
            fresh = session.fresh or (place.owner is not None and (waits or bool(place.held)))
            session.waiter = ticket
            timeout: float | None = 0
            if waits or (self._sharing is Sharing.NONE and not ticket.once):  # SQLite lets long waits go first
                ticket.session, timeout = session, ticket.deadline.remaining()
            late = again and timeout == 0
            if late:
                self._release(session, ticket)
            label = None if place.kept else self._show(request.label)
            if late or not session.acquire(
                request.name, shared=request.shared, timeout=timeout, label=label, again=again
            ):
                return False
            if request.fencing:
                ticket.token = session.next_token(request.name)
            place.held[request.name], ticket.place = ticket, place
            granted = self._entries.granted(ticket, session)
            if not granted:  # its asker has left
                del place.held[request.name]
                self._release(session, ticket)
        except BaseException as error:
            if session is not None:
                self._clean_up(place, ticket, session, error)
            if session is None or fresh or session.silent or not connection_lost(error):
                raise
            return None  # it had ended while it was idle
        else:
            return granted
        finally:
            if session is not None:
                session.waiter = None  # an open session must not keep an abandoned provider
            place.gate.leave()
            if not place.kept:
                self._leave(place)

    def _clean_up(self, place: Place, ticket: Ticket, session: Session, error: BaseException) -> None:
        """After an answer, unlock what the server may have granted all the same; else end the session."""
        if isinstance(error, ANSWERS):
            return  # the session is sound, and keeps what else it holds
        if place.held.get(ticket.request.name) is ticket:
            del place.held[ticket.request.name]
        sound = False
        try:
            if answered(error):
                self._release(session, ticket)
                sound = True
        except Exception as failure:  # noqa: BLE001 - the first error is on its way to the asker, and tells enough
            log.debug("could not unlock after an error: %s", first_line(failure))
        finally:
            if not sound:
                self.pool.end(session)

    def _unlock(self, place: Place, ticket: Ticket) -> bool:
        session, intact = ticket.session, False
        assert session is not None
        try:
            place.gate.enter(FOR_EVER)
            try:
                place.held.pop(ticket.request.name, None)
                intact = self._release(session, ticket)
            finally:
                place.gate.leave()
        except BaseException:
            self.pool.end(session)
            raise
        finally:
            self.settle(ticket, reusable=intact)
        return intact

    @staticmethod
    def _release(session: Session, ticket: Ticket) -> bool:
        """Unlock; repeat it after an error that is an answer, which leaves open whether the lock is still held."""
        failures = 0
        while True:
            try:
                return session.release(ticket.request.name, shared=ticket.shared) or failures > 0
            except Exception as error:
                failures += 1
                if failures == UNLOCKS or not answered(error):
                    raise


def _step(deadline: Deadline, last: float) -> float:
    """Return how long to pause now: longer the longer we have waited, never beyond the deadline."""
    step = min(last, max(POLL_FIRST, deadline.waited / 2))
    remaining = deadline.remaining()
    return step if remaining is None else min(step, remaining)
