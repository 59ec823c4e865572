"""Which server session takes which lock: all on one, one for each owner, or one for each lock.

A lender serves one part of a process, which can use its sessions: the threads, or one event loop. Whatever
the server grants, it reports at once to the bookkeeping; when that says that the asker has left meanwhile, it
gives the lock straight back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from .errors import DeadlockError, UnsupportedError
from .failures import connection_lost
from .timeouts import Deadline
from .turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Callable

    from .contexts import Context, Latch
    from .dialects.base import Session
    from .requests import Request
    from .stock import Stock
    from .threads import Workers
    from .tickets import Ticket

__all__ = ["ANSWERS", "BaseLender", "Lender", "SharedLender", "SingleLender"]

# Pauses between tries where the server does not queue, or no session is left to wait on; in seconds.
POLL_FIRST, POLL_LAST = 0.001, 0.01
# How many askers of a key that was not free wait for it at once, before one tries again; of how many keys.
FORESIGHT, FORESEEN_KEYS = 16, 64

R = TypeVar("R")

# Errors that are the server's own answer: nothing was granted.
ANSWERS = (DeadlockError, UnsupportedError)


class Lender(Protocol):
    """Sessions of one part of a process."""

    stock: Stock

    def foresees_wait(self, request: Request) -> bool:
        """Tell whether a try would be in vain: others had the key a moment ago."""
        ...

    def attempt(self, request: Request, ticket: Ticket, context: Context) -> bool:
        """Try once."""
        ...

    def wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Wait for the lock; False may come before the deadline."""
        ...

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        """Take back what a refused asker waited on; not to be used again if he may have interrupted it."""
        ...

    def unlock(self, name: object, ticket: Ticket, context: Context) -> bool:
        """Unlock; False when the server says that the session did not hold it."""
        ...


def _step(deadline: Deadline, last: float) -> float:
    """Return how long to pause now: longer the longer we have waited, never beyond the deadline."""
    step = min(last, max(POLL_FIRST, deadline.waited / 2))
    remaining = deadline.remaining()
    return step if remaining is None else min(step, remaining)


class BaseLender:
    """What all lenders do with one session."""

    def __init__(self, stock: Stock, granted: Callable[[Ticket, Session], bool], show: Callable[[str], str]) -> None:
        self.stock = stock
        self._granted = granted
        self._show = show

    def foresees_wait(self, request: Request) -> bool:  # noqa: ARG002 - waits cost no more than tries
        return False

    def _take(self) -> Session:
        session = self.stock.take()
        assert session is not None
        return session

    def _ask(
        self, session: Session, request: Request, ticket: Ticket, timeout: float | None, label: str | None
    ) -> bool:
        try:
            if not session.acquire(request.name, shared=request.shared, timeout=timeout, label=label):
                return False
            if request.fencing:
                ticket.token = session.next_token(request.name)
            if self._granted(ticket, session):
                return True
            session.release(request.name, shared=request.shared)
        except ANSWERS:
            raise  # the session is sound, and keeps what else it holds
        except BaseException:
            self.stock.end(session)
            raise
        return False

    def _free(self, session: Session, name: object, ticket: Ticket) -> bool:
        try:
            return session.release(name, shared=ticket.shared)
        except BaseException:
            self.stock.end(session)
            raise


class SingleLender(BaseLender):
    """A session for each lock, where sessions cost nothing and the server does not queue."""

    def attempt(self, request: Request, ticket: Ticket, context: Context) -> bool:  # noqa: ARG002
        if ticket.session is None:
            ticket.session = self._take()
        return self._ask(ticket.session, request, ticket, 0, request.label)

    def wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        context.pause(_step(deadline, POLL_LAST))
        return self.attempt(request, ticket, context)

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        if ticket.session is not None:
            (self.stock.give if reusable else self.stock.end)(ticket.session)

    def unlock(self, name: object, ticket: Ticket, context: Context) -> bool:  # noqa: ARG002
        assert ticket.session is not None
        intact = self._free(ticket.session, name, ticket)
        self.settle(ticket, reusable=intact)
        return intact


class SharedLender(BaseLender):
    """All locks on one session, which never waits; waits on spare sessions, up to the stock's limit."""

    def __init__(
        self,
        stock: Stock,
        granted: Callable[[Ticket, Session], bool],
        show: Callable[[str], str],
        workers: Workers,
    ) -> None:
        super().__init__(stock, granted, show)
        self._workers = workers
        self._gate = Turnstile()
        self._shared: Session | None = None
        self._names: set[object] = set()
        self._mutex = threading.Lock()
        self._line: OrderedDict[Ticket, Latch | None] = OrderedDict()
        self._wanted: OrderedDict[object, int] = OrderedDict()

    def foresees_wait(self, request: Request) -> bool:
        """Spare the round trip of a try for a key that other processes want all the time."""
        with self._mutex:
            left = self._wanted.get(request.name, 0)
            if request.shared or not left or self._line or not self.stock.has_idle():
                return False
            self._wanted[request.name] = left - 1
            return True

    def _remember(self, request: Request, *, granted: bool) -> None:
        with self._mutex:
            self._wanted.pop(request.name, None)
            if not granted:
                self._wanted[request.name] = FORESIGHT
            if len(self._wanted) > FORESEEN_KEYS:
                self._wanted.popitem(last=False)

    def attempt(self, request: Request, ticket: Ticket, context: Context) -> bool:
        granted: bool | None = None
        while granted is None:  # on a new session, after those whose statements the loss of the last one ends
            granted = self._inside(partial(self._try, request, ticket), bool(self._names), context)
        if not request.shared and (self._wanted or not granted):
            self._remember(request, granted=granted)
        return granted

    def _inside(self, statement: Callable[[], R], precious: bool, context: Context) -> R:
        """Run a statement on the shared session; when others have locks there, nobody may interrupt it."""
        if precious or not self._gate.enter_if_free():
            return context.shield(self._workers, partial(self._wait_and_run, statement, context))
        try:
            return statement()
        finally:
            self._gate.leave()

    def _wait_and_run(self, statement: Callable[[], R], context: Context) -> R:
        self._gate.enter(context)
        try:
            return statement()
        finally:
            self._gate.leave()

    def _try(self, request: Request, ticket: Ticket) -> bool | None:
        """Try once; None when the session had gone stale while nobody used it."""
        if request.name in self._names and self._alive():
            # Readers of ours hold it there: the same session would be let in past a queued writer.
            return self._try_elsewhere(request, ticket)
        session = self._pick()
        fresh = session.fresh
        try:
            granted = self._ask(session, request, ticket, 0, None)
        except Exception as error:
            if fresh or session.silent or not connection_lost(error):
                raise
            return None
        if granted:
            self._names.add(request.name)
        return granted

    def _try_elsewhere(self, request: Request, ticket: Ticket) -> bool:
        while (spare := self._take_spare(ticket)) is not None:
            fresh = spare.fresh
            try:
                if self._ask(spare, request, ticket, 0, self._show(request.label)):
                    return True
            except Exception as error:
                if fresh or spare.silent or not connection_lost(error):
                    raise
            else:
                self._take_back(spare, reusable=True)
                return False
        return False

    def _alive(self) -> bool:
        return self._shared is not None and self._shared in self.stock

    def _pick(self) -> Session:
        session = self._shared
        if session is None or session not in self.stock:
            self._names.clear()
            session = self._shared = self._take()
        return session

    def wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        spare = ticket.lent = ticket.session = ticket.lent or self._take_spare(ticket)
        if spare is None:
            return self._poll(request, ticket, deadline, context)
        fresh, timeout = spare.fresh, deadline.remaining()
        try:
            return context.wait(
                lambda: self._ask(spare, request, ticket, timeout, self._show(request.label)), spare.interrupt
            )
        except Exception as error:
            if fresh or spare.silent or not connection_lost(error):
                raise
            ticket.lent = ticket.session = None  # it had gone stale while it was idle: the next one, please
            return False

    def _take_spare(self, ticket: Ticket) -> Session | None:
        """Take a session to wait on, unless somebody else is first in line for one."""
        with self._mutex:
            if self._line and next(iter(self._line)) is not ticket:
                return None
        spare = self.stock.take(within_limit=True)
        if spare is not None:
            self._leave_line(ticket)
        return spare

    def _poll(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Pause, until a session is free to wait on at best, then try on the shared one."""
        latch = context.latch()
        with self._mutex:
            self._line[ticket] = latch
            pause = _step(deadline, max(POLL_LAST, len(self._line) * POLL_FIRST))
        latch.wait(Deadline(pause))
        granted = self.attempt(request, ticket, context)
        if granted:
            self._leave_line(ticket)
        return granted

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

    def settle(self, ticket: Ticket, *, reusable: bool) -> None:
        self._leave_line(ticket)
        spare, ticket.lent = ticket.lent, None
        if spare is not None:
            self._take_back(spare, reusable=reusable)

    def _take_back(self, spare: Session, *, reusable: bool) -> None:
        (self.stock.give if reusable else self.stock.end)(spare)
        self._wake_first()

    def unlock(self, name: object, ticket: Ticket, context: Context) -> bool:
        session = ticket.session
        assert session is not None
        if session is self._shared:
            return self._inside(partial(self._free_shared, session, name, ticket), len(self._names) > 1, context)
        intact = self._free(session, name, ticket)
        self._take_back(session, reusable=intact)
        return intact

    def _free_shared(self, session: Session, name: object, ticket: Ticket) -> bool:
        self._names.discard(name)
        return self._free(session, name, ticket)
